"""Egress, against a fake internet: 1.1.1.1, 8.8.8.8 and 93.184.216.34 answer HTTP there."""
from conftest import SLOW

CURL = "curl -s -o /dev/null --max-time {} http://%s/".format(50 * SLOW)


def reaches(sbx, address, sdk):
    """What is open answers in whatever time a busy host takes; what is closed refuses at once."""
    try:
        return sbx.commands.run(CURL % address, timeout=60 * SLOW).exit_code == 0
    except sdk.CommandExitException:
        return False


def reached(sbx, *addresses):
    """Those that answer within a moment, of all tried at once: some of what is closed says nothing."""
    tries = ["{ curl -s -o /dev/null --max-time 5 http://%s/ && echo '%s'; } &" % (a, a) for a in addresses]
    return sbx.commands.run(" ".join(tries) + " wait", timeout=60 * SLOW).stdout.split()


def test_open_by_default(make, sdk):
    sbx = make()
    assert reaches(sbx, "1.1.1.1", sdk) and reaches(sbx, "8.8.8.8", sdk)


def test_wire4_18_no_internet(make, sdk):
    sbx = make(allow_internet_access=False)
    assert not reaches(sbx, "1.1.1.1", sdk)
    assert sbx.commands.run("echo inbound works").exit_code == 0


def test_wire4_17_allow_list(make, sdk):
    sbx = make(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["1.1.1.1"]})
    assert reaches(sbx, "1.1.1.1", sdk)
    assert not reaches(sbx, "8.8.8.8", sdk)


def test_deny_list_and_allow_wins(make, sdk):
    sbx = make(network={"deny_out": ["8.8.8.0/24", "1.1.1.1"], "allow_out": ["1.1.1.1/32"]})
    assert reaches(sbx, "1.1.1.1", sdk)
    assert not reaches(sbx, "8.8.8.8", sdk)
    assert reaches(sbx, "93.184.216.34", sdk)


def test_fault39_and_40_private_addresses_are_closed(sandbox, sdk):
    assert reaches(sandbox, "1.1.1.1", sdk)
    assert not reached(sandbox, "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "2852039166",
                       "0xA9FEA9FE", "[::ffff:169.254.169.254]", "[fd00:ec2::254]")


def test_fault40_the_host_and_other_sandboxes_are_closed(make, sdk):
    a, b = make(), make()
    b.commands.run("python3 -m http.server 8000", background=True)
    b.commands.run("until curl -s -o /dev/null http://localhost:8000; do sleep 0.1; done", timeout=60 * SLOW)
    ip = b.commands.run("hostname -I").stdout.split()[0]
    gw = a.commands.run("ip route | awk '/default/ {print $3}'").stdout.strip()
    assert reaches(a, "1.1.1.1", sdk)
    assert not reached(a, ip + ":8000", *["%s:%d" % (gw, port) for port in (22, 80, 3000, 8443)])


def test_dns(sandbox):
    assert sandbox.commands.run("getent hosts example.com").stdout.split()[0] == "93.184.216.34"
