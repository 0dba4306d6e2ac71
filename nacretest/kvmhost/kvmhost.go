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
	"maps"
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
	// Fit says what keeps this host from running the tests itself, nil if nothing does.
	// They run natively then. Where it is nil they are tests of the emulated host.
	Fit func(context.Context) error
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
	workerEnv  = "NACRE_KVMHOST"      // set inside, for the process that runs the tests
	rootEnv    = "NACRE_KVMHOST_ROOT" // of the first process of a native run
	emulateEnv = "NACRE_EMULATE"      // wants an emulated host where the tests could run natively
	planFile   = "/kvmhost.json"
	maxAgain   = 2               // how many hosts are started again
	unfit      = 175             // the exit code of an emulated host that runs no guests
	readyMark  = "KVMHOST-READY" // the tests begin
	exitMark   = "KVMHOST-EXIT "
)

// plan is what the outer process tells the inner one.
type plan struct {
	Args   []string
	Check  []string
	Env    []string
	Dir    string
	Files  []string // that Config.files brought
	Worker string   // what the process that runs the tests is
}

// What workerEnv says.
const (
	emulatedWorker = "emulated"
	nativeInit     = "native, first process"
	nativeWorker   = "native"
	// Where nestedEnv asks for it the tests run natively inside an emulated host, which
	// runs guests: how they would on a real one is tried so.
	emulatedAround = "emulated, around native"
	nestedWorker   = "emulated, native"
)

const nestedEnv = "NACRE_NATIVE_INSIDE"

// Slowness is how many times as long a test may wait here as on a real host, whose
// bounds are those that count.
func Slowness() int {
	if Emulated() {
		return 10
	}
	return 1
}

// Emulated tells whether this process runs inside an emulated host.
func Emulated() bool { return strings.HasPrefix(os.Getenv(workerEnv), "emulated") }

// Main runs the tests of a package and returns the exit code: natively where this host
// is fit, or else on an emulated one. It says which, and why.
func Main(m *testing.M, cfg Config) int {
	worker := os.Getenv(workerEnv)
	switch worker {
	case nativeInit:
		nativeFirst() // does not return
	case emulatedWorker, nativeWorker, nestedWorker:
		if cfg.Run != nil {
			return cfg.Run(m)
		}
		return m.Run()
	}
	if os.Getpid() == 1 {
		inside() // does not return
	}
	if os.Getuid() != 0 {
		fmt.Println("SKIP: the tests' host needs root (it installs QEMU, and makes namespaces)")
		return 0
	}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 3072
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Minute
	}
	run, where := native, "natively, on this host: it runs guests"
	if why := cfg.why(); why != "" && worker == emulatedAround {
		fmt.Println("the tests do not run natively:", why)
		return 1
	} else if why != "" {
		run, where = outside, "on an emulated host: "+why
	}
	fmt.Println("the tests run", where)
	code, err := run(cfg)
	if err != nil {
		fmt.Println("the tests' host failed:", err)
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
	m := &machine{cfg: cfg, until: time.Now().Add(cfg.Timeout), dir: dir, kernel: filepath.Join(found, "vmlinux"), initrd: filepath.Join(dir, "initrd")}
	files, err := cfg.files()
	if err != nil {
		return 0, err
	}
	if m.base, err = pack(m.initrd, found, files); err != nil {
		return 0, err
	}
	wd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	return m.all(plan{Args: verbose(os.Args[1:]), Check: cfg.Check, Env: ours(), Dir: wd, Files: slices.Collect(maps.Keys(files)), Worker: worker()})
}

// worker is what runs the tests on an emulated host.
func worker() string {
	if os.Getenv(nestedEnv) != "" {
		return emulatedAround
	}
	return emulatedWorker
}

// ours are the variables that tests go by.
func ours() (env []string) {
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NACRE_") {
			env = append(env, e)
		}
	}
	return env
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
			fmt.Println(seen.count("an emulated host"))
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

// rootDirs and rootFiles are what every root of tests has.
var rootDirs = [...]string{"dev", "proc", "sys", "tmp", "run", "etc", "root"}

func rootFiles() map[string]string {
	return map[string]string{"etc/hosts": "127.0.0.1 localhost\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"}
}

// files are all that tests need: path there, path here.
func (cfg Config) files() (map[string]string, error) {
	files := map[string]string{}
	if os.Getenv(workerEnv) == emulatedAround { // they have been brought
		p, err := readPlan()
		for _, f := range p.Files {
			files[f] = f
		}
		return files, err
	}
	if cfg.Files != nil {
		var err error
		if files, err = cfg.Files(); err != nil {
			return nil, err
		}
	}
	found, err := Assets()
	if err != nil {
		return nil, err
	}
	release, err := Release()
	if err != nil {
		return nil, err
	}
	for there, dir := range map[string]string{Firecracker: release, PinnedFirecracker: found} {
		files[there] = filepath.Join(dir, "firecracker")
		files[filepath.Join(filepath.Dir(there), "jailer")] = filepath.Join(dir, "jailer")
	}
	return files, nil
}

// pack writes the emulated host's file system, all but the plan, and returns its size.
func pack(path, found string, files map[string]string) (int64, error) {
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
	for _, d := range rootDirs {
		a.dir(d)
	}
	a.console()
	for name, text := range rootFiles() {
		a.bytes(name, []byte(text))
	}
	a.file("init", self)
	files = maps.Clone(files)
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
		return fmt.Errorf("the tests take %s from this host: %w", program, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	files["/sbin/"+filepath.Base(program)] = path
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
