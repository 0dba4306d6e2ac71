package kvmhost

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image makes a root file system for sandboxes, as an EROFS image at path, of this
// host's own programs: a shell, Perl, Python and what the tests' guests run. A tenth of the
// base template's, for the emulated host has its files in its memory.
func Image(path string) error {
	root := path + ".root"
	defer os.RemoveAll(root)
	for _, d := range []string{"tmp", "proc", "sys", "dev", "run", "root", "etc", "home/user", "var/tmp", "workspace"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := programs(root); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n", "etc/hostname": "base\n",
		"etc/hosts": "127.0.0.1 localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	for _, d := range []string{"home/user", "workspace"} {
		if err := os.Chown(filepath.Join(root, d), 1000, 1000); err != nil {
			return err
		}
	}
	return command("mkfs.erofs", "-E", "noinline_data", path, root)
}

// programs copies what the image runs.
func programs(root string) error {
	files := map[string]string{}
	for _, program := range []string{"bash", "cat", "ls", "mkdir", "mkfifo", "rm", "sleep", "id", "whoami", "uname", "env", "perl", "sha256sum", "head",
		"sh", "tr", "ln", "stat", "stty", "tput", "pgrep", "pkill", "ps", "seq", "curl", "getent", "hostname", "ip", "grep", "awk", "/usr/bin/python3"} {
		if err := WithLibraries(files, program); err != nil {
			return err
		}
	}
	for there, here := range files {
		there = filepath.Join(root, strings.Replace(there, "/sbin/", "/bin/", 1))
		if err := os.MkdirAll(filepath.Dir(there), 0o755); err != nil {
			return err
		}
		if err := command("cp", "-L", here, there); err != nil {
			return err
		}
	}
	if err := python(root); err != nil {
		return err
	}
	terminals := filepath.Join(root, "lib/terminfo/x")
	if err := os.MkdirAll(terminals, 0o755); err != nil {
		return err
	}
	if err := command("cp", "-L", "/lib/terminfo/x/xterm", "/lib/terminfo/x/xterm-256color", terminals); err != nil {
		return err
	}
	modules, err := filepath.Glob("/usr/lib/*/perl-base")
	if err != nil || len(modules) != 1 {
		return fmt.Errorf("perl's modules: %v, %w", modules, err)
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(modules[0])), 0o755); err != nil {
		return err
	}
	return command("cp", "-r", modules[0], filepath.Join(root, modules[0]))
}

// python copies Debian's own Python, without what no program reads.
func python(root string) error {
	out, err := exec.Command("/usr/bin/python3", "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))").Output()
	if err != nil {
		return fmt.Errorf("python's modules: %w", err)
	}
	from := strings.TrimSpace(string(out))
	to := filepath.Join(root, from)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := command("cp", "-a", from, to); err != nil { // with its times, by which compiled modules go
		return err
	}
	for _, no := range []string{"config-*", "test", "lib2to3", "pydoc_data", "distutils", "ensurepip", "dist-packages"} {
		all, err := filepath.Glob(filepath.Join(to, no))
		if err != nil {
			return err
		}
		for _, dir := range all {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// command runs a program; an error tells what it said.
func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
