// Package kvmhost gives tests a host that can run microVMs, wherever they are
// started: the test binary boots itself inside a QEMU machine whose emulated
// processor has AMD's virtualization, on Debian's own kernel. Nothing of the
// software under test is patched; it is only slow there, so what is measured in it
// says nothing about a real host.
package kvmhost

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

//go:embed assets.sh
var assets string

// Config of a host.
type Config struct {
	// Files adds files of this host to the emulated one: path there, path here. Called
	// on this host only.
	Files func() (map[string]string, error)
	// Setup runs on the host that the tests run on, before them.
	Setup func() error
	// Check are arguments that have this program try, and end with status 0, whether the
	// emulated host runs guests. One that was started on a busy machine may have measured
	// its timers wrongly and then never gets to it; another one is started.
	Check []string
	// Native tells that this host can run the tests itself.
	Native func() bool
	// MemoryMiB of the emulated host, 2560 when it is 0.
	MemoryMiB int
	// Timeout ends an emulated host that hangs; 20 minutes when it is 0.
	Timeout time.Duration
}

// Where the emulated host has what assets.sh collected.
const (
	Firecracker = "/assets/firecracker"
	Jailer      = "/assets/jailer"
)

const (
	workerEnv = "NACRE_KVMHOST" // set inside, for the process that runs the tests
	planFile  = "/kvmhost.json"
	maxStarts = 3
	unfit     = 175 // the exit code of an emulated host that runs no guests
	exitMark  = "KVMHOST-EXIT "
)

// plan is what the outer process tells the inner one.
type plan struct {
	Args  []string
	Check []string
	Env   []string
	Dir   string
}

// Emulated tells whether this process runs inside.
func Emulated() bool { return os.Getenv(workerEnv) != "" }

// Main runs the tests of a package and returns the exit code.
func Main(m *testing.M, cfg Config) int {
	switch {
	case os.Getpid() == 1:
		inside() // does not return
	case Emulated() || cfg.Native != nil && cfg.Native():
		if cfg.Setup != nil {
			if err := cfg.Setup(); err != nil {
				fmt.Println("the tests' host could not be set up:", err)
				return 1
			}
		}
		return m.Run()
	}
	if os.Getuid() != 0 {
		fmt.Println("SKIP: the emulated host needs root (it installs QEMU)")
		return 0
	}
	code, err := outside(cfg)
	if err != nil {
		fmt.Println("the emulated host failed:", err)
		return 1
	}
	return code
}

// outside boots the emulated host and passes its output on.
func outside(cfg Config) (int, error) {
	dir, err := os.MkdirTemp("", "nacre-kvmhost-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	found, err := Assets()
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := pack(initrd, found, cfg); err != nil {
		return 0, err
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 2560
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Minute
	}
	for range maxStarts {
		if code, err := run(cfg, filepath.Join(found, "vmlinuz"), initrd); err != nil || code != unfit {
			return code, err
		}
		fmt.Println("the emulated host runs no guests; starting another one")
	}
	// Time that goes with the instructions that were executed, and not with the clock on
	// the wall, is never measured wrongly. It takes several times as long.
	return run(cfg, filepath.Join(found, "vmlinuz"), initrd, "-icount", "shift=1")
}

// run boots the emulated host once.
func run(cfg Config, kernel, initrd string, more ...string) (int, error) {
	c := exec.Command("qemu-system-x86_64", append([]string{
		"-M", "microvm,acpi=off,rtc=off,pit=on,pic=on,isa-serial=on", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt",
		"-m", strconv.Itoa(cfg.MemoryMiB), "-smp", "1", // two hung once
		"-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 acpi=off reboot=t panic=1 nopti mitigations=off nokaslr i8042.noaux i8042.nokbd rdinit=/init quiet"}, more...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		return 0, err
	}
	timer := time.AfterFunc(cfg.Timeout, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	code, err := follow(out)
	_ = c.Process.Kill() // it has nothing more to say
	_ = c.Wait()
	if err != nil {
		return 0, fmt.Errorf("%w %s", err, stderr.Bytes())
	}
	return code, nil
}

// follow copies the console, a line at a time, until the exit code comes.
func follow(console io.Reader) (int, error) {
	in := bufio.NewReader(console)
	for {
		line, err := in.ReadString('\n')
		line = strings.ReplaceAll(line, "\r", "")
		if at := strings.Index(line, exitMark); at >= 0 && err == nil {
			fmt.Print(line[:at])
			return strconv.Atoi(strings.TrimSpace(line[at+len(exitMark):]))
		}
		fmt.Print(line)
		if err != nil {
			return 0, errors.New("it ended before the tests did")
		}
	}
}

// Assets returns the directory that assets.sh makes.
func Assets() (string, error) { return Script(assets) }

// Script runs a shell script and returns the last line that it prints.
func Script(text string, args ...string) (string, error) {
	c := exec.Command("sh", append([]string{"-s", "--"}, args...)...)
	c.Stdin = strings.NewReader(text)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

// pack writes the emulated host's file system.
func pack(path, found string, cfg Config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	p := plan{Args: os.Args[1:], Check: cfg.Check, Dir: wd}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NACRE_") {
			p.Env = append(p.Env, e)
		}
	}
	// The time limit of the tests is kept by the inner process.
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "etc", "root"} {
		a.dir(d)
	}
	a.console()
	a.bytes("kvmhost.json", b)
	a.bytes("etc/hosts", []byte("127.0.0.1 localhost\n"))
	a.bytes("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.file("init", self)
	files := map[string]string{}
	if cfg.Files != nil {
		if files, err = cfg.Files(); err != nil {
			return err
		}
	}
	for _, name := range []string{"firecracker", "jailer"} {
		files["/assets/"+name] = filepath.Join(found, name)
	}
	modules, err := filepath.Glob(filepath.Join(found, "modules", "*.ko"))
	if err != nil {
		return err
	}
	for _, m := range modules {
		files["/modules/"+filepath.Base(m)] = m
	}
	for there, here := range files {
		a.file(strings.TrimPrefix(there, "/"), here)
	}
	return a.close()
}

// WithLibraries adds a program of this host, and the libraries that it loads, to files.
func WithLibraries(files map[string]string, program string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	files["/sbin/"+program] = path
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			files[word] = word
		}
	}
	return nil
}
