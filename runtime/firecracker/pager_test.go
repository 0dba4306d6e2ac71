package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre/internal/uffd"
	"github.com/nacrehq/nacre/internal/workingset"
	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

func unmarshal(b []byte, into any) error { return json.Unmarshal(b, into) }

// TestPagerTrustsNobody: a pager has nothing left that a process can lose, and of whoever
// connects it believes only what it can check.
func TestPagerTrustsNobody(t *testing.T) {
	kvmhost.Report(t)
	good := fmt.Appendf(nil, `[{"base_host_virt_addr":%d,"size":%d,"offset":0,"page_size":%d}]`, uffd.PageSize, uffd.PageSize, uffd.PageSize)
	null, err := os.Open(os.DevNull)
	check(t, err)
	defer null.Close()
	for _, c := range []struct {
		name string
		vmm  int
		text []byte
		want string
	}{
		{"another user", 4711, good, "not the VMM's"},
		{"another descriptor", 0, good, "no userfaultfd"},
		{"rubbish", 0, []byte("{"), "regions"},
		{"more than the file", 0, []byte(strings.Replace(string(good), `"size":2`, `"size":4`, 1)), "region"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			root := filepath.Join(dir, pagerRoot)
			check(t, os.Mkdir(root, 0o555))
			listener, err := listenSocket(dir, pagerSocket, 0)
			check(t, err)
			defer listener.Close()
			memory, err := os.Create(filepath.Join(dir, memFile))
			check(t, err)
			defer memory.Close()
			check(t, memory.Truncate(uffd.PageSize))
			p := &pager{journal: filepath.Join(dir, pagesFile)}
			journal, err := os.OpenFile(p.journal, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			check(t, err)
			defer journal.Close()
			orders, err := json.Marshal(pagerOrders{User: 1234567, VMM: c.vmm, Root: root})
			check(t, err)
			self, err := os.Executable()
			check(t, err)
			cmd := exec.Command(self, PagerArg)
			cmd.Stdin, cmd.ExtraFiles = strings.NewReader(string(orders)), []*os.File{listener, memory, journal}
			check(t, cmd.Start())
			demandLocked(t, cmd.Process.Pid, root)
			conn, err := net.Dial("unix", filepath.Join(dir, pagerSocket))
			check(t, err)
			defer conn.Close()
			if _, _, err = conn.(*net.UnixConn).WriteMsgUnix(c.text, unix.UnixRights(int(null.Fd())), nil); !errors.Is(err, unix.EPIPE) { // it may have hung up
				check(t, err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the pager ended well")
			}
			if err := p.failure(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the pager says %v, want %q", err, c.want)
			}
		})
	}
}

// demandLocked waits until the process has given up what it can.
func demandLocked(t *testing.T, pid int, root string) {
	t.Helper()
	want := []string{"Uid:\t1234567\t1234567\t1234567\t1234567\n", "Gid:\t1234567\t1234567\t1234567\t1234567\n", "Groups:\t \n",
		"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		check(t, err)
		lacks := ""
		for _, task := range tasks {
			b, _ := os.ReadFile(task)
			for _, w := range want {
				if !strings.Contains(string(b), w) {
					lacks = w
				}
			}
		}
		is, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
		empty, rerr := os.Stat(root)
		if lacks == "" && len(tasks) > 0 && err == nil && rerr == nil && os.SameFile(is, empty) {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("the pager's status lacks %q; its root: %v", lacks, err)
		}
	}
}

// TestPagerJournal: what was waited for comes back as parts of the file, and these as pages.
func TestPagerJournal(t *testing.T) {
	p := &pager{journal: filepath.Join(t.TempDir(), pagesFile)}
	check(t, os.WriteFile(p.journal, []byte("page 3\npage 1\npage 2\npage 9\npage 3\nfailed \"page 7: no\"\n"), 0o600))
	const n = uffd.PageSize
	want := workingset.Set{{Offset: n, Length: 3 * n}, {Offset: 9 * n, Length: n}}
	if got := p.asked(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := pagesOf(append(want, workingset.Extent{Offset: 10*n - 5, Length: n})); !slices.Equal(got, []int{1, 2, 3, 9, 10}) {
		t.Errorf("pages %v", got)
	}
	if err := p.failure(); err == nil || !strings.Contains(err.Error(), "page 7: no") {
		t.Errorf("the failure is %v", err)
	}
}
