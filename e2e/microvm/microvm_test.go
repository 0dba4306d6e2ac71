package microvm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// upFlags start the server on a host that is slow and has little.
func upFlags() []string {
	return []string{"up", "--data-dir", dataDir, "--runtime", "auto", "--base-image", baseImage,
		"--http", fmt.Sprintf("0.0.0.0:%d", httpPort), "--https", "", "--install=false", "--warm=false", "--standby", "0",
		"--boot-timeout", bootTimeout, "--cpus", "1", "--memory-mib", "256", "--disk-mib", "64", "--slots-ready", "1", "--log-level", "warn"}
}

// up starts the server, with flags of the caller's, and waits until it is ready. It
// returns what ends it.
func up(t *testing.T, flags ...string) (kill func()) {
	t.Helper()
	c := exec.Command("/bin/nacre", slices.Concat(upFlags(), flags)...)
	c.Env = append(os.Environ(), "NACRE_FIRECRACKER_ALLOW_HOLES=1")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ended := make(chan struct{})
	go func() { // one that ends is not waited for
		defer close(ended)
		_ = c.Wait()
		cancel()
	}()
	if out, err := exec.CommandContext(ctx, "/bin/nacre", "env", "--data-dir", dataDir, "--wait", "4m").CombinedOutput(); err != nil {
		t.Fatalf("the server does not get ready: %v: %s", err, out)
	}
	kill = func() {
		_ = c.Process.Kill()
		<-ended
	}
	t.Cleanup(kill)
	return kill
}

// setUp installs the release and the kernel as a user does who has them as files, and
// has the host looked at.
func setUp(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"setup", "firecracker", "--from", release, "--kernel", vmlinux}, "CVE-"},
		{[]string{"setup", "firecracker", "--from", release, "--kernel", vmlinux, "--allow-known-holes"}, "This host runs microVMs"},
		{[]string{"doctor"}, "firecracker"},
	} {
		cmd := exec.Command("/bin/nacre", append(c.args, "--data-dir", dataDir)...)
		cmd.Env = append(os.Environ(), "NACRE_FIRECRACKER_ALLOW_HOLES=1")
		out, err := cmd.CombinedOutput() // the doctor finds other things, too
		t.Logf("nacre %v: %v\n%s", c.args, err, out)
		if !strings.Contains(string(out), c.says) {
			t.Fatalf("nacre %v does not say %q", c.args, c.says)
		}
	}
}

// environment is what the SDKs are told.
func environment(t *testing.T) (env []string) {
	t.Helper()
	out, err := exec.Command("/bin/nacre", "env", "--json", "--data-dir", dataDir).Output()
	if err != nil {
		t.Fatal(err)
	}
	var vars map[string]string
	if err := json.Unmarshal(out, &vars); err != nil {
		t.Fatal(err)
	}
	for k, v := range vars {
		if !strings.HasSuffix(k, "_URL") { // where it is from outside is known there
			env = append(env, k+"="+v)
		}
	}
	return env
}

// TestSDKs installs what microVMs need, lets the server choose, and walks the path of the
// published Python packages into a sandbox of
// Firecracker's and one of gVisor's beside it, with a kill -9 of the server in the
// middle: the sandboxes do not notice.
func TestSDKs(t *testing.T) {
	setUp(t)
	kill := up(t)
	env := environment(t)
	part := func(sdk, name string, vars ...string) string {
		t.Helper()
		begin := time.Now()
		out, err := kvmhost.Outside(t.Context(), "sdk", slices.Concat(env, vars, []string{"NACRE_SDK=" + sdk, name})...)
		t.Logf("%s, %s %v: %v\n%s", sdk, name, vars, time.Since(begin).Round(time.Millisecond), out)
		if err != nil {
			t.Fatalf("%s, %s %v: %v", sdk, name, vars, err)
		}
		return strings.TrimSpace(out)
	}
	micro := "NACRE_SANDBOX=" + part("e2b", "begin", "NACRE_RUNTIME=firecracker") // which is what auto chose
	process := "NACRE_SANDBOX=" + part("e2b", "begin", "NACRE_RUNTIME=gvisor", "NACRE_ASKED=gvisor")
	part("e2b", "use", micro)
	part("e2b", "use", process)
	kill()
	kill = up(t)
	part("e2b", "use", micro)
	part("moru", "use", micro)
	part("moru", "use", process)
	part("e2b", "pause", micro)
	part("e2b", "pause", process)
	part("e2b", "end", micro)
	part("e2b", "end", process)
	kill()
}
