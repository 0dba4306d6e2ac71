// Package cgroup2 runs the tests of cgroups and of the gVisor driver, and the life of a
// sandbox on a server, on a host that has version 2 of cgroups alone and Debian's own
// kernel, as a fresh Debian has: an emulated one, so that it matters not what the host
// around it is. It is asked for by NACRE_EMULATE.
package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// assets is where the emulated host has the programs of those tests, and what they need.
// This one only brings them there: gVisor cannot be linked into the first program of a
// host, for it wants /proc before main begins.
const assets = "/assets"

// tested are the packages, by the names of their programs.
var tested = []struct{ program, path string }{
	{"cgroup.test", "github.com/nacrehq/nacre/internal/cgroup"},
	{"gvisor.test", "github.com/nacrehq/nacre/runtime/gvisor"},
	{"e2e.test", "github.com/nacrehq/nacre/e2e"},
}

// The server that e2e.test runs, and its base template.
const (
	binary    = assets + "/nacre"
	baseImage = assets + "/base.erofs"
)

// run runs the tests with the arguments of this program.
func run(*testing.M) (code int) {
	if err := mountDisk(); err != nil {
		fmt.Println("the emulated host has no disk:", err)
		return 1
	}
	for _, p := range tested {
		c := exec.Command(filepath.Join(assets, p.program), os.Args[1:]...)
		c.Env = append(os.Environ(), "TMPDIR="+disk, "NACRE_TEST_ASSETS="+assets,
			"NACRE_E2E_BINARY="+binary, "NACRE_BASE_IMAGE="+baseImage, "NACRE_CACHE_DIR="+filepath.Join(disk, "cache"))
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			fmt.Println(p.program, err)
			code = 1
		}
	}
	return code
}

// disk is where the tests have a disk. In the rest of the emulated host's file system all
// that a machine writes is memory of its own, which counts.
const disk = "/disk"

func mountDisk() error {
	const device = "zram0"
	if err := os.WriteFile("/sys/block/"+device+"/disksize", []byte("4G"), 0); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "/dev/"+device).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	return unix.Mount("/dev/"+device, disk, "ext4", 0, "")
}

func TestMain(m *testing.M) {
	if os.Getenv("NACRE_EMULATE") == "" && os.Getpid() != 1 {
		fmt.Println("SKIP: the tests on version 2 of cgroups take minutes; make test-cgroup2 runs them")
		return
	}
	dir, err := os.MkdirTemp("", "nacre-cgroup2-")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := kvmhost.Main(m, kvmhost.Config{MemoryMiB: 4096, Run: run, Files: func() (map[string]string, error) { return files(dir) }})
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func files(dir string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range tested {
		path := filepath.Join(dir, p.program)
		out[filepath.Join(assets, p.program)] = path
		build := exec.Command("go", "test", "-c", "-o", path, p.path)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, text)
		}
	}
	guest := exec.Command(filepath.Join(dir, "gvisor.test"))
	guest.Dir, guest.Env = "..", append(os.Environ(), "NACRE_TEST_MAKE_ASSETS="+dir)
	if text, err := guest.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the guest: %w: %s", err, text)
	}
	for _, name := range []string{"testguest", "root.erofs"} {
		out[filepath.Join(assets, name)] = filepath.Join(dir, name)
	}
	return out, errors.Join(kvmhost.WithLibraries(out, "mkfs.ext4"), server(out, dir))
}

// server adds what e2e.test runs.
func server(out map[string]string, dir string) error {
	bin, err := filepath.Abs("../../../bin/nacre")
	if err != nil {
		return err
	}
	if _, err := os.Stat(bin); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	image := filepath.Join(dir, "base.erofs")
	if err := kvmhost.Image(image); err != nil {
		return fmt.Errorf("the base template: %w", err)
	}
	// An internet of the tests' own puts its name server over this.
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		return err
	}
	out[binary], out[baseImage], out["/etc/resolv.conf"] = bin, image, resolv
	return nil
}
