package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/server"
)

// ownBinary gives the server a program file of its own, by which its processes
// are told from those of any other test on this host. It must not run yet.
func (d *daemon) ownBinary() {
	d.t.Helper()
	d.bin = installBinary(d.t, d.bin, d.path("nacre"))
}

func installBinary(t testing.TB, from, to string) string {
	t.Helper()
	if err := command("", "cp", "--reflink=auto", from, to); err != nil {
		t.Fatal(err)
	}
	return to
}

// instance names the installation's kernel objects, as the slots that it makes
// ahead tell: the test's /run/netns is its own.
func (d *daemon) instance() (name string) {
	d.t.Helper()
	d.eventually(patience, func() error {
		names, err := filepath.Glob("/run/netns/nacre-*-*")
		if err == nil && len(names) == 0 {
			err = errors.New("the server has no network slot yet")
		}
		if err == nil {
			name = strings.Split(filepath.Base(names[0]), "-")[1]
		}
		return err
	})
	return name
}

// traces counts what an installation has on this host, by kind. Two of them can
// be compared: equal means that nothing leaked in between.
type traces map[string]int

func (t traces) String() string {
	keys := make([]string, 0, len(t))
	for k := range t {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s=%d ", k, t[k])
	}
	return strings.TrimSpace(b.String())
}

// traces counts what the installation of that name has.
func (d *daemon) traces(instance string) traces {
	d.t.Helper()
	out := traces{}
	names, err := os.ReadDir("/run/netns")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n.Name(), "nacre-"+instance+"-") {
			out["netns"]++
		}
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		d.t.Fatal(err)
	}
	out["links"] = strings.Count(string(links), ": nv"+instance+"-")
	nft, err := exec.Command("nft", "-s", "list", "ruleset").Output()
	if err != nil {
		d.t.Fatal(err)
	}
	out["nft table"] = strings.Count(string(nft), "table inet nacre_"+instance) + strings.Count(string(nft), "table ip nacre_"+instance)
	out["nft chains"] = strings.Count(string(nft), "\tchain ")
	out["nft slots"] = len(regexp.MustCompile(`"nv`+instance+`-[0-9a-z]+" :`).FindAllString(string(nft), -1))
	for _, dir := range cgroupDirs(instance) {
		all, _ := os.ReadDir(dir) // the parent may be gone
		for _, e := range all {
			if e.IsDir() {
				out["cgroups"]++
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Fatal(err)
	}
	out["mounts"] = strings.Count(string(mounts), " "+d.dir+"/") + strings.Count(string(mounts), "/nacre-"+instance+"-")
	handles, err := filepath.Glob("/run/nacre/" + instance + "*")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, dir := range handles {
		all, _ := os.ReadDir(dir)
		out["handles"] += 1 + len(all)
	}
	out["processes"] = len(d.processes(true))
	err = filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil: // it went away meanwhile
			return nil
		case path == d.path("node", "logs"): // kept, for they outlive their sandboxes
			return filepath.SkipDir
		case strings.HasPrefix(path, d.path("nacre.db")):
			return nil
		}
		out["files"]++
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func cgroupDirs(instance string) []string {
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/nacre-", "/sys/fs/cgroup/*/nacre-"} {
		dirs, _ := filepath.Glob(pattern + instance) // a constant pattern
		out = append(out, dirs...)
	}
	return out
}

// processes lists the processes of the server's own binary, but for the server:
// the sandboxes. With leaders only, those that were not started by another one,
// for a sandbox has as many as its guest's work asks for.
func (d *daemon) processes(leaders bool) []int {
	d.t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		d.t.Fatal(err)
	}
	parents := map[int]int{}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || (d.cmd != nil && d.running() && pid == d.cmd.Process.Pid) {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		stat, serr := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil || serr != nil || strings.TrimSuffix(exe, " (deleted)") != d.bin {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		parents[pid], _ = strconv.Atoi(strings.Fields(rest)[1])
	}
	var out []int
	for pid, parent := range parents {
		if _, started := parents[parent]; !leaders || !started {
			out = append(out, pid)
		}
	}
	return out
}

// ahead is how many sandboxes gVisor's driver has wait for a start, or more after forks.
const ahead = 2

// settled waits until the pools are full and nothing has changed for a third of a
// second, and returns the last look.
func (d *daemon) settled(instance string, standbys int) traces {
	d.t.Helper()
	last, since := d.traces(instance), time.Now()
	d.eventually(patience, func() error {
		c := d.status().Capacity // first: what stands by has all its traces
		now := d.traces(instance)
		if now.String() != last.String() {
			since = time.Now()
		}
		same := time.Since(since) > 350*time.Millisecond
		last = now
		if c == nil || c.Standbys != standbys {
			return fmt.Errorf("the standbys are not all there: %+v", c)
		}
		if machines := len(d.machines(instance)); now["processes"] < machines+ahead {
			return fmt.Errorf("%d machines, and nothing waits for a start: %s", machines, now)
		}
		if !same {
			return fmt.Errorf("still changing: %s", now)
		}
		return nil
	})
	return last
}

// eventually tries until check has no error, on a slow host for longer.
func (d *daemon) eventually(within time.Duration, check func() error) {
	d.t.Helper()
	end := time.Now().Add(slow(within))
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			d.t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// status asks the server's own socket.
func (d *daemon) status() server.Status {
	d.t.Helper()
	var s server.Status
	resp, err := server.AdminClient(d.dir).Get("http://nacre/status")
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		d.t.Fatal(resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

// handle is the part of a machine's handle file that the tests look at.
type handle struct {
	path   string
	Handle struct {
		Machine nacre.MachineID
		State   struct {
			PID   int
			Start uint64
			Group string // the cgroup's name; "" is the machine's id
		}
	}
	Spec *struct{ Sandbox string }
	Slot nacre.Slot
}

// machines lists the files of the handles, of standbys too.
func (d *daemon) machines(instance string) []string {
	d.t.Helper()
	files, err := filepath.Glob("/run/nacre/" + instance + "/*.json")
	if err != nil {
		d.t.Fatal(err)
	}
	return files
}

// handles returns the handle of each sandbox that has a machine, by sandbox.
func (d *daemon) handles() map[string]handle {
	d.t.Helper()
	out := map[string]handle{}
	for _, f := range d.machines(d.instance()) {
		h, err := readHandle(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ended meanwhile
		}
		if err != nil {
			d.t.Fatalf("%s: %v", f, err)
		}
		if h.Spec != nil {
			out[h.Spec.Sandbox] = h
		}
	}
	return out
}

func readHandle(path string) (handle, error) {
	h := handle{path: path}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &h)
	}
	return h, err
}

// rss is a process's resident memory in bytes.
func rss(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// openFiles counts a process's descriptors.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// kindsOfFiles tells what a process's descriptors are, for who reads of too many.
func kindsOfFiles(pid int) string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	all, _ := os.ReadDir(dir) // it may have ended
	kinds := traces{}
	for _, e := range all {
		to, _ := os.Readlink(filepath.Join(dir, e.Name()))
		kinds[regexp.MustCompile(`[0-9]+|i[0-9a-z]{20}|m[0-9a-z]{16,}`).ReplaceAllString(to, "N")]++
	}
	return kinds.String()
}

// hostMemory is this host's memory in bytes.
func hostMemory(t testing.TB) int64 {
	t.Helper()
	stats, err := node.ReadHost("/")
	if err != nil {
		t.Fatal(err)
	}
	return stats.MemoryTotal
}
