package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// endToEndTests are those of what reaches a sandbox and what a sandbox reaches. They
// are what gVisor's sandboxes pass: the same program, told another runtime.
var endToEndTests = [...]string{
	"TestPreviews", "TestWakeOnRequest", "TestWebSocketAcrossAPause",
	"TestFault35_AgentsOwnRoutes", "TestFault36_TwoTeams", "TestFault37_KeysTokensAndSignatures",
	"TestFault40_WhatAGuestReaches",
}

// TestEndToEnd runs them with a server whose sandboxes are microVMs.
func TestEndToEnd(t *testing.T) {
	for _, name := range endToEndTests {
		t.Run(name, func(t *testing.T) {
			kvmhost.Report(t)
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, endToEnd, "-test.v", "-test.run", "^"+name+"$", "-test.timeout", "7m")
			c.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NACRE_KVMHOST") }),
				"NACRE_E2E_BINARY=/bin/nacre", "NACRE_TEST_SLOWNESS="+fmt.Sprint(kvmhost.Slowness()),
				"NACRE_RUNTIME=firecracker", "NACRE_BASE_IMAGE="+baseImage, "NACRE_CACHE_DIR=/tmp/cache",
				"NACRE_BOOT_TIMEOUT="+bootTimeout, "NACRE_CPUS=1", "NACRE_DISK_MIB=64", "NACRE_SLOTS_READY=1", "NACRE_STANDBY=0",
				"NACRE_FIRECRACKER_FROM="+release, "NACRE_FIRECRACKER_KERNEL="+vmlinux, "NACRE_FIRECRACKER_ALLOW_HOLES=1")
			out, err := c.CombinedOutput()
			text := strings.TrimSpace(string(out))
			if err != nil || !strings.Contains(text, "--- PASS: "+name) || strings.Contains(text, "--- SKIP") {
				t.Errorf("%v", err)
			}
			t.Logf("\n%s", text)
		})
	}
}

// TestMiosaPreviews: the previews of the other dialect, with its published client.
func TestMiosaPreviews(t *testing.T) {
	setUp(t)
	kill := up(t, "--https", "127.0.0.1:8443") // by which the addresses of previews begin with https
	out, err := kvmhost.Outside(t.Context(), "miosa", append(environment(t), fmt.Sprint("NACRE_TEST_SLOWNESS=", kvmhost.Slowness()))...)
	t.Log(out)
	if err != nil || strings.Contains(out, "SKIPPED") {
		t.Errorf("the suite: %v", err)
	}
	nacre(t, "kill", "--all")
	kill()
}
