"""Egress, against a fake internet: 1.1.1.1, 8.8.8.8 and 93.184.216.34 answer HTTP there."""
import pytest

CURL = "curl -s -o /dev/null --max-time 50 http://%s/"


def reaches(sbx, address, sdk):
    """What is open answers in whatever time a busy host takes; what is closed refuses at once."""
    try:
        return sbx.commands.run(CURL % address).exit_code == 0
    except sdk.CommandExitException:
        return False


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


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "2852039166",
                                     "0xA9FEA9FE", "[::ffff:169.254.169.254]", "[fd00:ec2::254]"])
def test_fault39_and_40_private_addresses_are_closed(sandbox, sdk, address):
    assert not reaches(sandbox, address, sdk)


def test_fault40_the_host_and_other_sandboxes_are_closed(make, sdk):
    a, b = make(), make()
    b.commands.run("python3 -m http.server 8000", background=True)
    ip = b.commands.run("hostname -I").stdout.split()[0]
    assert not reaches(a, ip + ":8000", sdk)
    gw = a.commands.run("ip route | awk '/default/ {print $3}'").stdout.strip()
    for port in (22, 80, 3000, 8443):
        assert not reaches(a, "%s:%d" % (gw, port), sdk)


def test_dns(sandbox):
    assert sandbox.commands.run("getent hosts example.com").stdout.split()[0] == "93.184.216.34"
