package nacretest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
)

// fakeRestoreKey is what the snapshots of FakeDaemon.Runtime are bound to.
const fakeRestoreKey = "fake/1"

// A fake snapshot is two files: the guest and a manifest with its sum.
const (
	fakeMemoryFile   = "memory.json"
	fakeManifestFile = "snapshot.json"
)

type fakeManifest struct {
	Key, Sum, Image          string
	CPUs, MemoryMiB, DiskMiB int
	FilesOnly                bool
}

// fakeMemory is all of a guest that a snapshot keeps.
type fakeMemory struct {
	Init    *nacre.AgentInit
	Inits   int
	Log     []nacre.LogEntry
	Files   map[string]fakeSavedFile
	Procs   []fakeSavedProcess
	NextPID int
}

type fakeSavedFile struct {
	Dir   bool
	Data  []byte
	Owner string
	Mtime time.Time
}

type fakeSavedProcess struct {
	Info  nacre.ProcessInfo
	Term  bool
	Stdin string
	EOF   bool
	Argv  []string
	Left  time.Duration // of a sleep
	Kept  bool
	Said  []nacre.ProcessEvent
}

func (v fakeMachine) Snapshot(ctx context.Context, dir string, opt nacre.SnapshotOptions) (info nacre.SnapshotInfo, err error) {
	id := v.m.Spec.ID
	if v.m.hasEnded() {
		return info, nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", id)
	}
	if !v.can.Snapshots {
		return info, nacre.Errorf(nacre.CodeUnsupported, "the runtime %s takes no snapshots", v.can.Runtime)
	}
	if err := v.m.hold(); err != nil {
		return info, err
	}
	begin := time.Now()
	defer func() {
		// A daemon that was killed does nothing more: the guest is left as it is.
		if (err != nil || opt.KeepRunning) && !v.d.Killed() {
			v.m.letGo()
		}
	}()
	if err := v.d.op("machine.snapshot", id); err != nil {
		return info, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return info, err
	}
	if len(entries) > 0 {
		return info, nacre.Errorf(nacre.CodeConflict, "the snapshot's directory is not empty")
	}
	saved := v.m.Guest.save()
	if opt.FilesOnly {
		saved = fakeMemory{Files: saved.Files}
	}
	memory, err := json.Marshal(saved)
	if err != nil {
		return info, err
	}
	sum := sha256.Sum256(memory)
	s := v.m.Spec
	manifest, err := json.Marshal(fakeManifest{Key: v.can.RestoreKey, Sum: hex.EncodeToString(sum[:]), Image: s.Root.Image,
		CPUs: s.Resources.CPUs, MemoryMiB: s.Resources.MemoryMiB, DiskMiB: s.Root.UpperMiB, FilesOnly: opt.FilesOnly})
	if err != nil {
		return info, err
	}
	info.RestoreKey, info.FilesOnly = v.can.RestoreKey, opt.FilesOnly
	for _, f := range []struct {
		name    string
		content []byte
	}{{fakeMemoryFile, memory}, {fakeManifestFile, manifest}} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f.name), f.content, 0o600)
		}
		if err == nil {
			err = v.d.Step() // half a snapshot, then a whole one
		}
		n := int64(len(f.content))
		info.Files = append(info.Files, nacre.SnapshotFile{Name: f.name, Size: n, Disk: n})
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil && !v.d.Killed() {
		_ = os.Remove(filepath.Join(dir, fakeMemoryFile))
		_ = os.Remove(filepath.Join(dir, fakeManifestFile))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			err = nacre.Wrap(nacre.CodeNoSpace, err, "the disk is full")
		case ctx.Err() != nil:
			err = nacre.Wrap(nacre.CodeDeadline, err, "the snapshot was called off")
		}
	}
	info.Stopped = time.Since(begin)
	return info, err
}

func (v fakeMachine) Resume(context.Context) error {
	if v.m.hasEnded() {
		return nacre.Errorf(nacre.CodeNotFound, "machine %s has ended", v.m.Spec.ID)
	}
	if err := v.d.op("machine.resume", v.m.Spec.ID); err != nil {
		return err
	}
	v.m.letGo()
	return v.d.Step()
}

// hold stops the guest: its agent answers nobody.
func (m *FakeMachine) hold() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held != nil {
		return nacre.Errorf(nacre.CodeConflict, "the machine stands still, or a snapshot is being taken")
	}
	m.held = make(chan struct{})
	return nil
}

func (m *FakeMachine) letGo() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held != nil {
		close(m.held)
		m.held = nil
	}
}

// Held tells whether the guest stands still.
func (m *FakeMachine) Held() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held != nil
}

// awaitGoing returns when the guest does not stand still.
func (m *FakeMachine) awaitGoing(ctx context.Context) error {
	m.mu.Lock()
	held := m.held
	m.mu.Unlock()
	if held == nil {
		return nil
	}
	select {
	case <-held:
		return nil
	case <-m.ended:
		return nacre.Errorf(nacre.CodeUnavailable, "the guest went away")
	case <-ctx.Done():
		return nacre.Wrap(nacre.CodeUnavailable, ctx.Err(), "the guest did not answer in time")
	}
}

func (r fakeRuntime) openSnapshot(dir string) (man fakeManifest, mem fakeMemory, err error) {
	b, err := os.ReadFile(filepath.Join(dir, fakeManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return man, mem, nacre.Wrap(nacre.CodeNotFound, err, "there is no whole snapshot in the directory")
	}
	if err != nil {
		return man, mem, err
	}
	damaged := func(cause error) error { return nacre.Wrap(nacre.CodeConflict, cause, "the snapshot is damaged") }
	if err := json.Unmarshal(b, &man); err != nil {
		return man, mem, damaged(err)
	}
	if man.Key != r.can.RestoreKey {
		return man, mem, nacre.Mismatch("the snapshot", man.Key, r.can.RestoreKey)
	}
	memory, err := os.ReadFile(filepath.Join(dir, fakeMemoryFile))
	if err != nil {
		return man, mem, damaged(err)
	}
	if sum := sha256.Sum256(memory); hex.EncodeToString(sum[:]) != man.Sum {
		return man, mem, damaged(errors.New("the sum is another one"))
	}
	if err := json.Unmarshal(memory, &mem); err != nil {
		return man, mem, damaged(err)
	}
	return man, mem, nil
}

func (r fakeRuntime) VerifySnapshot(_ context.Context, dir string) error {
	if err := r.d.op("runtime.verify", ""); err != nil {
		return err
	}
	_, _, err := r.openSnapshot(dir)
	return err
}

func (r fakeRuntime) Restore(ctx context.Context, spec nacre.MachineSpec, dir string) (nacre.Machine, error) {
	if err := r.d.op("runtime.restore", spec.ID); err != nil {
		return nil, err
	}
	man, mem, err := r.openSnapshot(dir)
	if err != nil {
		return nil, err
	}
	was := fmt.Sprint(man.Image, man.CPUs, man.MemoryMiB, man.DiskMiB)
	if is := fmt.Sprint(spec.Root.Image, spec.Resources.CPUs, spec.Resources.MemoryMiB, spec.Root.UpperMiB); is != was {
		return nil, nacre.Errorf(nacre.CodeConflict, "the snapshot was taken with %s, not with %s", was, is)
	}
	return r.boot(ctx, spec, func(g *FakeGuest) {
		if man.FilesOnly {
			mem.NextPID = g.nextPID
		}
		g.load(mem)
	})
}

// save copies what the guest has.
func (g *FakeGuest) save() fakeMemory {
	g.mu.Lock()
	defer g.mu.Unlock()
	mem := fakeMemory{Init: g.init, Inits: g.inits, Log: g.log, NextPID: g.nextPID, Files: map[string]fakeSavedFile{}}
	for p, n := range g.files {
		mem.Files[p] = fakeSavedFile{n.dir, n.data, n.owner, n.mtime}
	}
	for _, p := range g.procs {
		p.mu.Lock()
		s := fakeSavedProcess{Info: p.info, Term: p.term, Stdin: p.stdin.String(), EOF: p.eof, Argv: p.argv, Kept: p.kept, Said: p.said}
		if !p.until.IsZero() {
			s.Argv, s.Left = []string{"sleep"}, time.Until(p.until)
		}
		p.mu.Unlock()
		mem.Procs = append(mem.Procs, s)
	}
	return mem
}

// load gives a new guest what another one had, but for listeners: those are the
// test's. A process goes on with the command
// that it was in and then ends: scripts are not followed further.
func (g *FakeGuest) load(mem fakeMemory) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.init, g.inits, g.log, g.nextPID = mem.Init, mem.Inits, mem.Log, mem.NextPID
	g.files = fakeFS{}
	for p, f := range mem.Files {
		g.files[p] = &fakeNode{f.Dir, f.Data, f.Owner, f.Mtime}
	}
	for _, s := range mem.Procs {
		argv := s.Argv
		if s.Left != 0 {
			argv = []string{"sleep", strconv.FormatFloat(max(s.Left, 0).Seconds(), 'f', -1, 64)}
		}
		p := &fakeProcess{guest: g, info: s.Info, term: s.Term, eof: s.EOF, subs: map[*fakeStream]struct{}{},
			ended: make(chan struct{}), input: make(chan struct{}, 1), argv: argv, kept: s.Kept, said: s.Said}
		p.stdin.WriteString(s.Stdin)
		g.procs[s.Info.PID] = p
		go p.run(argv, 0)
	}
}
