package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
)

// maxAccountFile bounds what is read of an account file: the guest writes it.
const maxAccountFile = 4 << 20

// account is one user of the guest.
type account struct {
	name     string
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// accounts reads the guest's users. Files are parsed here because os/user needs
// cgo to see more, and read again only when they change.
type accounts struct {
	passwdPath, groupPath string

	mu          sync.Mutex
	passwdStamp stamp
	groupStamp  stamp
	byName      map[string]account
	userNames   map[uint32]string
	groupNames  map[uint32]string
}

type stamp struct {
	mod  time.Time
	size int64
	ino  uint64
}

func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	s := stamp{mod: fi.ModTime(), size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.ino = st.Ino
	}
	return s
}

// lookup returns the account, or CodeUnauthenticated with the sentence that
// clients show.
func (u *accounts) lookup(name string) (account, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.refresh(); err != nil && u.byName == nil {
		return account{}, nacre.Wrap(nacre.CodeExhausted, err, "the guest has no file descriptor left to look its users up")
	}
	acc, ok := u.byName[name]
	if !ok {
		return account{}, nacre.Errorf(nacre.CodeUnauthenticated, "invalid username: '%s'", validText(name))
	}
	return acc, nil
}

// userName and groupName return a name, or the number when it has none.
func (u *accounts) userName(uid uint32) string  { return u.nameOf(uid, false) }
func (u *accounts) groupName(gid uint32) string { return u.nameOf(gid, true) }

func (u *accounts) nameOf(id uint32, group bool) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.refresh() // numbers will do
	names := u.userNames
	if group {
		names = u.groupNames
	}
	if n, ok := names[id]; ok {
		return n
	}
	return strconv.FormatUint(uint64(id), 10)
}

// refresh reads the files again when they have changed. When it fails, for want
// of a descriptor, what was known stays and the next call tries again.
func (u *accounts) refresh() error {
	p, g := stampOf(u.passwdPath), stampOf(u.groupPath)
	if u.byName != nil && p == u.passwdStamp && g == u.groupStamp {
		return nil
	}
	byName, userNames, groupNames := map[string]account{}, map[uint32]string{}, map[uint32]string{}
	members := map[string][]uint32{}
	err := eachLine(u.groupPath, 4, func(f []string) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			return
		}
		if _, dup := groupNames[uint32(gid)]; !dup {
			groupNames[uint32(gid)] = validText(f[0])
		}
		for name := range strings.SplitSeq(f[3], ",") {
			if name != "" {
				members[name] = append(members[name], uint32(gid))
			}
		}
	})
	if err != nil {
		return err
	}
	err = eachLine(u.passwdPath, 6, func(f []string) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if _, dup := byName[f[0]]; dup || f[0] == "" || err1 != nil || err2 != nil {
			return
		}
		home := f[5]
		if !filepath.IsAbs(home) {
			home = "/"
		}
		groups := append([]uint32{uint32(gid)}, members[f[0]]...)
		slices.Sort(groups)
		byName[f[0]] = account{name: f[0], uid: uint32(uid), gid: uint32(gid), groups: slices.Compact(groups), home: filepath.Clean(home)}
		if _, dup := userNames[uint32(uid)]; !dup {
			userNames[uint32(uid)] = validText(f[0])
		}
	})
	if err != nil {
		return err
	}
	u.passwdStamp, u.groupStamp = p, g
	u.byName, u.userNames, u.groupNames = byName, userNames, groupNames
	return nil
}

// eachLine calls fn with the fields of each line that has at least n. A FIFO in
// the file's place must not hang the agent. A file that cannot be read has no
// lines; the error is that of a process without a free descriptor.
func eachLine(path string, n int, fn func([]string)) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return err
	}
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccountFile))
	if err != nil {
		return nil
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, maxAccountFile)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if fields := strings.Split(line, ":"); len(fields) >= n {
			fn(fields)
		}
	}
	return nil
}

// validText makes any bytes fit into a protobuf string.
func validText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
