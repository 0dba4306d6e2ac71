// Package kvmhost gives tests a host that can run microVMs, wherever they are
// started: the test binary boots itself inside a QEMU machine whose emulated
// processor has AMD's virtualization, on Debian's own kernel. Nothing of the
// software under test is patched; it is only slow there, so what is measured in it
// says nothing about a real host.
package kvmhost

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	// Run runs the tests, on the host that they run on. It is m.Run when it is nil.
	Run func(*testing.M) int
	// Check are arguments that have this program try, and end with status 0, whether the
	// emulated host runs guests. Another one is started, and said so, when it does not.
	Check []string
	// Ports are TCP ports of the emulated host that the functions of Outer reach.
	Ports []int
	// Outer are functions of the host around the emulated one, for Outside. Their context
	// ends with the emulated host.
	Outer map[string]func(context.Context, Request) (string, error)
	// Native tells that this host can run the tests itself.
	Native func() bool
	// MemoryMiB of the emulated host, 3072 when it is 0.
	MemoryMiB int
	// Timeout is how long all may take, on however many emulated hosts; 20 minutes when
	// it is 0. A minute before its end the tests themselves are ended, and say where they
	// are.
	Timeout time.Duration
}

// Where the emulated host has the release to be tested (see Release), and the one that
// assets.sh pins, which may be the same.
const (
	Firecracker       = "/assets/firecracker"
	Jailer            = "/assets/jailer"
	PinnedFirecracker = "/assets/pinned/firecracker"
	PinnedJailer      = "/assets/pinned/jailer"
)

const (
	workerEnv = "NACRE_KVMHOST" // set inside, for the process that runs the tests
	planFile  = "/kvmhost.json"
	maxAgain  = 2   // how many hosts are started again
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
		if cfg.Run != nil {
			return cfg.Run(m)
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
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 3072
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Minute
	}
	m := &machine{cfg: cfg, until: time.Now().Add(cfg.Timeout), dir: dir, kernel: filepath.Join(found, "vmlinuz"), initrd: filepath.Join(dir, "initrd")}
	if m.base, err = pack(m.initrd, found, cfg); err != nil {
		return 0, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	p := plan{Args: verbose(os.Args[1:]), Check: cfg.Check, Dir: wd}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NACRE_") {
			p.Env = append(p.Env, e)
		}
	}
	return m.all(p)
}

// all runs the tests to their end, on another host where one stands still.
func (m *machine) all(p plan) (int, error) {
	var seen progress
	see := func(line string) {
		if seen.see(line) {
			fmt.Print(line)
		}
	}
	args := p.Args
	still, unable, taken := 0, 0, 0
	for {
		p.Args = ending(p.Args, time.Until(m.until)-time.Minute)
		code, err := m.run(p, see)
		switch {
		case err == nil && code == unfit && unable < maxAgain:
			unable++
			fmt.Printf("an emulated host runs no guests; starting another one (%d of %d)\n", unable, maxAgain)
		case err == nil && code == unfit:
			return 0, errors.New("it runs no guests")
		case errors.Is(err, errNoPort) && taken < maxAgain:
			taken++
			fmt.Printf("%v; starting the emulated host again (%d of %d)\n", err, taken, maxAgain)
		case errors.Is(err, errStalled) && still < maxAgain:
			still++
			fmt.Printf("an emulated host stood still in %q, after %d results; starting another one for the rest (%d of %d)\n",
				seen.now, len(seen.ended), still, maxAgain)
			p.Args = without(args, seen.skip())
		case err != nil:
			return 0, err
		default:
			if still+unable > 0 {
				fmt.Printf("emulated hosts that stood still: %d; that ran no guests: %d\n", still, unable)
			}
			if code == 0 && len(seen.failed) > 0 { // on a host that stood still later
				fmt.Printf("failed: %s\n", strings.Join(seen.failed, " "))
				code = 1
			}
			return code, nil
		}
	}
}

// verbose has the tests say where they are, which tells what is left after a host that
// stood still.
func verbose(args []string) []string {
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "-test.v=") })
	return append([]string{"-test.v=true"}, args...)
}

// ending has the tests end after that time with the stacks of what they are at, unless
// they are to end before.
func ending(args []string, after time.Duration) []string {
	const flag = "-test.timeout="
	after = max(after.Round(time.Second), time.Second)
	out := slices.Clone(args)
	for i, a := range out {
		if text, ok := strings.CutPrefix(a, flag); ok {
			if d, err := time.ParseDuration(text); err == nil && (d == 0 || d > after) {
				out[i] = flag + after.String()
			}
			return out
		}
	}
	return append([]string{flag + after.String()}, out...)
}

// without adds to the arguments what is not to be run again.
func without(args []string, skip string) []string {
	const flag = "-test.skip="
	out := slices.Clone(args)
	if skip == "" {
		return out
	}
	for i, a := range out {
		if strings.HasPrefix(a, flag) {
			out[i] = a + "|" + skip
			return out
		}
	}
	return append([]string{flag + skip}, out...)
}

// Assets returns the directory that assets.sh makes.
func Assets() (string, error) { return Script(assets) }

// Release returns the directory with the firecracker and jailer to be tested: what
// NACRE_FIRECRACKER_DIR names, such as an official release's under these two names, or
// the release that assets.sh pins.
func Release() (string, error) {
	if dir := os.Getenv("NACRE_FIRECRACKER_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	return Assets()
}

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

// pack writes the emulated host's file system, all but the plan, and returns its size.
func pack(path, found string, cfg Config) (int64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	a := newArchive(f)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "etc", "root"} {
		a.dir(d)
	}
	a.console()
	a.bytes("etc/hosts", []byte("127.0.0.1 localhost\n"))
	a.bytes("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.file("init", self)
	files := map[string]string{}
	if cfg.Files != nil {
		if files, err = cfg.Files(); err != nil {
			return 0, err
		}
	}
	release, err := Release()
	if err != nil {
		return 0, err
	}
	for there, dir := range map[string]string{Firecracker: release, PinnedFirecracker: found} {
		files[there] = filepath.Join(dir, "firecracker")
		files[filepath.Join(filepath.Dir(there), "jailer")] = filepath.Join(dir, "jailer")
	}
	modules, err := filepath.Glob(filepath.Join(found, "modules", "*.ko"))
	if err != nil {
		return 0, err
	}
	for _, m := range modules {
		files["/modules/"+filepath.Base(m)] = m
	}
	for there, here := range files {
		a.file(strings.TrimPrefix(there, "/"), here)
	}
	if err := a.close(); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

// give puts the plan behind the file system. The kernel reads archives until there is
// no more.
func (m *machine) give(p plan) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.initrd, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(m.base); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	a := newArchive(f)
	a.pad(m.base)
	a.bytes(strings.TrimPrefix(planFile, "/"), b)
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
