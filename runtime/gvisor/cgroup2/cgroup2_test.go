// Package cgroup2 runs the gVisor driver's tests on a host that has version 2 of cgroups
// alone and Debian's own kernel, as a fresh Debian has: an emulated one, so that it
// matters not what the host around it is. It is asked for by NACRE_EMULATE.
package cgroup2

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// driver is the program of the driver's tests, with what they need beside it. This one
// only brings it there: gVisor cannot be linked into the first program of a host, for
// it wants /proc before main begins.
const driver = "/assets/gvisor.test"

func TestMain(m *testing.M) {
	if kvmhost.Emulated() {
		err := syscall.Exec(driver, append([]string{driver}, os.Args[1:]...), append(os.Environ(), "NACRE_TEST_ASSETS="+filepath.Dir(driver)))
		fmt.Println(driver, err)
		os.Exit(1)
	}
	if os.Getenv("NACRE_EMULATE") == "" && os.Getpid() != 1 {
		fmt.Println("SKIP: the driver's tests on version 2 of cgroups take minutes; make test-cgroup2 runs them")
		return
	}
	dir, err := os.MkdirTemp("", "nacre-cgroup2-")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := kvmhost.Main(m, kvmhost.Config{MemoryMiB: 4096, Files: func() (map[string]string, error) { return files(dir) }})
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func files(dir string) (map[string]string, error) {
	out := map[string]string{driver: filepath.Join(dir, "gvisor.test")}
	build := exec.Command("go", "test", "-c", "-o", out[driver], "github.com/nacrehq/nacre/runtime/gvisor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	assets := exec.Command(out[driver])
	assets.Dir, assets.Env = "..", append(os.Environ(), "NACRE_TEST_MAKE_ASSETS="+dir)
	if text, err := assets.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the guest: %w: %s", err, text)
	}
	for _, name := range []string{"testguest", "root.erofs"} {
		out[filepath.Join(filepath.Dir(driver), name)] = filepath.Join(dir, name)
	}
	return out, nil
}
