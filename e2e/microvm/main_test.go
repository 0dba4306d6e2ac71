// Package microvm runs the real binary on a host whose sandboxes are Firecracker's and
// gVisor's, mostly an emulated one; published SDKs against it from the host around:
// client, edge, agent, as a user has them; and those end-to-end tests that are about what
// is between a sandbox and the world.
package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre/e2e/cached"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

const (
	dataDir   = "/data"
	baseImage = "/assets/base.erofs"
	release   = "/assets/release" // the release at hand, which is for tests only
	vmlinux   = "/assets/vmlinux"
	endToEnd  = "/assets/e2e.test" // the program of the tests in ..
	httpPort  = 3000

	// bootTimeout is ten times the usual one: on an emulated host that shares its processor
	// with other work a boot of five seconds takes half a minute.
	bootTimeout = "5m"
)

var scratch string // of the host around

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == firecracker.ProbeArg {
		os.Exit(firecracker.ProbeMain())
	}
	cfg := kvmhost.Config{Files: files, Fit: fit, Check: []string{firecracker.ProbeArg},
		MemoryMiB: 4096, Timeout: 45 * time.Minute, Ports: []int{httpPort},
		Outer: map[string]func(context.Context, kvmhost.Request) (string, error){"sdk": sdk, "miosa": miosa, "python": python, "javascript": javascript}}
	if os.Getenv(byHandEnv) != "" {
		byHand(&cfg)
	}
	code := kvmhost.Main(m, cfg)
	if scratch != "" {
		_ = os.RemoveAll(scratch)
	}
	os.Exit(code)
}

// fit decides as the product does.
func fit(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return firecracker.Probe(ctx, self)
}

// files brings the program and what a user would have it download.
func files() (map[string]string, error) {
	bin, err := filepath.Abs("../../bin/nacre")
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: run `make build` first", err)
	}
	kernel, err := kvmhost.Script(`exec ../../guest/kernel/build.sh`)
	if err != nil {
		return nil, fmt.Errorf("the guest's kernel: %w", err)
	}
	from, err := kvmhost.Release()
	if err != nil {
		return nil, err
	}
	if scratch, err = os.MkdirTemp("", "nacre-microvm-"); err != nil {
		return nil, err
	}
	base := filepath.Join(scratch, "base.erofs")
	if err := kvmhost.Image(base); err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	program := filepath.Join(scratch, "e2e.test")
	build := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", program, "github.com/nacrehq/nacre/e2e")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	resolv := filepath.Join(scratch, "resolv.conf") // which fakenet covers
	if err := os.WriteFile(resolv, nil, 0o644); err != nil {
		return nil, err
	}
	m := map[string]string{"/bin/nacre": bin, baseImage: base, vmlinux: kernel, endToEnd: program, "/etc/resolv.conf": resolv}
	for _, name := range []string{"firecracker", "jailer"} {
		m[filepath.Join(release, name)] = filepath.Join(from, name)
	}
	for _, program := range []string{"mkfs.ext4", "mkfs.erofs", "nft", "cp"} {
		if err := kvmhost.WithLibraries(m, program); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// sdk runs a part of walk.py on the host around; its arguments are variables of the
// environment and, at last, the part's name.
func sdk(ctx context.Context, r kvmhost.Request) (string, error) {
	python, err := cached.Python("python", "../python/requirements.txt")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	last := len(r.Args) - 1
	c := exec.CommandContext(ctx, python, "walk.py", r.Args[last])
	c.Env = append(os.Environ(), r.Args[:last]...)
	url := "http://" + r.Addrs[httpPort]
	for _, brand := range []string{"MORU", "E2B"} {
		c.Env = append(c.Env, brand+"_API_URL="+url, brand+"_SANDBOX_URL="+url)
	}
	c.Env = append(c.Env, "NACRE_URL="+url)
	out, err := c.CombinedOutput()
	return string(out), err
}

// miosa runs the tests of previews that the published MIOSA client passes against gVisor's
// sandboxes, on the host around; its arguments are variables of the environment.
func miosa(ctx context.Context, r kvmhost.Request) (string, error) {
	python, err := cached.Python("python-miosa", "../python-miosa/requirements.txt")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, python, "-m", "pytest", "-q", "-rfs", "--tb=short", "--timeout=300", "-p", "no:cacheprovider", "--durations=5", "test_previews.py")
	c.Dir = "../python-miosa"
	c.Env = append(append(os.Environ(), r.Args...), "MIOSA_BASE_URL=http://"+r.Addrs[httpPort]+"/api/v1")
	out, err := c.CombinedOutput()
	return string(out), err
}
