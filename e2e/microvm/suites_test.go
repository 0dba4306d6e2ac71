package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/e2e/cached"
	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// suites are those that the published packages pass against gVisor's sandboxes, the
// same files, but for what depends on the whole base template or measures time.
var suites = []struct {
	name, where, sdk string
	args             []string
}{
	{"python-network", "python", "e2b", []string{"test_network.py"}},
	{"javascript-network", "javascript", "@moru-ai/core", []string{"^wire4_17 and 18 network$"}},
	{"python-files", "python", "e2b", []string{"test_files.py", "test_pty.py"}},
	{"python-commands", "python", "moru", append([]string{"test_commands.py"}, deselected("test_commands.py",
		"test_wire4_01_base_has_what_is_promised", "test_wire4_01_sudo_drops_the_environment", "test_guest_limits", // the base template's
		"test_wire4_04_timeout", "test_trap07_float_timeout_is_accepted", // seconds that are a real host's
		"test_big_output", "test_many_at_once")...)}, // about a minute, which is the command's, on a busy emulated host
	{"python-lifecycle", "python", "e2b", append([]string{"test_lifecycle.py"}, deselected("test_lifecycle.py",
		"test_create_options_and_info", "test_metrics_wire4_12", "test_clock_is_right", // the base template's
		"test_wire4_13_set_timeout", "test_set_timeout_extends", "test_timeout_error_as_documented", // seconds that are a real host's
		"test_ten_at_once",                                                                         // a minute
		"test_wire4_20_ten_at_once_256_mib_each_way",                                               // the other package's
		"test_trap10_and_wire4_22_get_host_over_https", "test_private_traffic_and_mask_host")...)}, // by TLS
	{"python-pause", "python", "e2b", []string{"test_pause.py::test_pause_ends_connections_to_the_outside"}}, // of two dozen, which take a minute each
}

func deselected(file string, tests ...string) (args []string) {
	for _, name := range tests {
		args = append(args, "--deselect", file+"::"+name)
	}
	return args
}

// TestSuites runs them from the host around, with sandboxes that are microVMs and have
// the internet of fakenet.
func TestSuites(t *testing.T) {
	setUp(t)
	fakenet.StartHere(t)
	kill := up(t, "--runtime", "firecracker")
	env := append(environment(t), "NACRE_MODE=http", fmt.Sprint("NACRE_TEST_SLOWNESS=", kvmhost.Slowness()))
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			out, err := kvmhost.Outside(t.Context(), s.where, slices.Concat(env, []string{"NACRE_SDK=" + s.sdk, "--"}, s.args)...)
			t.Log(out)
			if err != nil || strings.Contains(out, "SKIPPED") || strings.Contains(out, "pass 0") {
				t.Errorf("the suite: %v", err)
			}
		})
	}
	nacre(t, "kill", "--all")
	kill()
}

// python runs tests of ../python on the host around; its arguments are variables of the
// environment and, behind "--", those of pytest.
func python(ctx context.Context, r kvmhost.Request) (string, error) {
	interpreter, err := cached.Python("python", "../python/requirements.txt")
	if err != nil {
		return "", err
	}
	return suite(ctx, r, "../python", append([]string{interpreter,
		"-m", "pytest", "-q", "-rfs", "--tb=short", "--timeout=600", "-p", "no:cacheprovider", "--durations=5"}, behind(r.Args)...))
}

// javascript runs tests of ../js there, of the names that the pattern behind "--" fits.
func javascript(ctx context.Context, r kvmhost.Request) (string, error) {
	packages, err := cached.Node("node", "../js/package.json")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(packages, "run-microvm-") // Node looks for packages beside the file
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	text, err := os.ReadFile("../js/suite.test.mjs")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "suite.test.mjs"), text, 0o644)
	}
	if err != nil {
		return "", err
	}
	return suite(ctx, r, dir, []string{"node", "--test", "--test-force-exit", "--test-reporter=spec",
		"--test-name-pattern=" + behind(r.Args)[0], "suite.test.mjs"})
}

func behind(args []string) []string { return args[slices.Index(args, "--")+1:] }

// suite runs a command in dir, which is told what nacre env tells and where the server
// is reached.
func suite(ctx context.Context, r kvmhost.Request, dir string, command []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), r.Args[:slices.Index(r.Args, "--")]...)
	for _, brand := range []string{"MORU", "E2B"} {
		c.Env = append(c.Env, brand+"_API_URL=http://"+r.Addrs[httpPort], brand+"_SANDBOX_URL=http://"+r.Addrs[httpPort])
	}
	out, err := c.CombinedOutput()
	return string(out), err
}
