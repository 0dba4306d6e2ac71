// Package microvm runs the real binary on an emulated host whose sandboxes are
// Firecracker's and gVisor's, and a published SDK against it from the host around:
// client, edge, agent, as a user has them.
package microvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/e2e/cached"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

const (
	dataDir   = "/data"
	baseImage = "/assets/base.erofs"
	httpPort  = 3000
)

var scratch string // of the host around

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == firecracker.ProbeArg {
		os.Exit(firecracker.ProbeMain())
	}
	code := kvmhost.Main(m, kvmhost.Config{Files: files, Check: []string{firecracker.ProbeArg},
		Ports: []int{httpPort}, Outer: map[string]func(context.Context, kvmhost.Request) (string, error){"sdk": sdk}})
	if scratch != "" {
		_ = os.RemoveAll(scratch)
	}
	os.Exit(code)
}

// files brings an installation, as `nacre setup firecracker` leaves it, but for the
// release: the one at hand is for tests only and would be refused.
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
	assets, err := kvmhost.Assets()
	if err != nil {
		return nil, err
	}
	if scratch, err = os.MkdirTemp("", "nacre-microvm-"); err != nil {
		return nil, err
	}
	base := filepath.Join(scratch, "base.erofs")
	if err := image(base); err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	m := map[string]string{"/bin/nacre": bin, baseImage: base}
	for name, file := range map[string]string{
		firecracker.VMMName: filepath.Join(assets, "firecracker"), firecracker.JailerName: filepath.Join(assets, "jailer"), firecracker.KernelName: kernel,
	} {
		m[filepath.Join(dataDir, "firecracker", name)] = file
	}
	for _, program := range []string{"mkfs.ext4", "mkfs.erofs", "nft"} {
		if err := kvmhost.WithLibraries(m, program); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// image makes a small root file system of this host's own programs.
func image(path string) error {
	root := path + ".root"
	for _, d := range []string{"tmp", "proc", "sys", "dev", "run", "root", "etc", "home/user", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{}
	for _, program := range []string{"bash", "cat", "ls", "mkdir", "rm", "sleep", "id", "whoami", "uname", "env", "perl", "sha256sum", "head"} {
		if err := kvmhost.WithLibraries(files, program); err != nil {
			return err
		}
	}
	for there, here := range files {
		there = filepath.Join(root, strings.Replace(there, "/sbin/", "/bin/", 1))
		if err := os.MkdirAll(filepath.Dir(there), 0o755); err != nil {
			return err
		}
		if err := cached.Command("", "cp", "-L", here, there); err != nil {
			return err
		}
	}
	perl, err := filepath.Glob("/usr/lib/*/perl-base")
	if err != nil || len(perl) != 1 {
		return fmt.Errorf("perl's modules: %v, %w", perl, err)
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(perl[0])), 0o755); err != nil {
		return err
	}
	if err := cached.Command("", "cp", "-r", perl[0], filepath.Join(root, perl[0])); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n", "etc/hostname": "base\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	if err := os.Chown(filepath.Join(root, "home/user"), 1000, 1000); err != nil {
		return err
	}
	return cached.Command("", "mkfs.erofs", "-E", "noinline_data", path, root)
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
