package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/internal/atomicfile"
	"github.com/nacrehq/nacre/network"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

// Down ends the server on the data directory, if one runs, and every sandbox of
// it, and takes what they had from the kernel and the disk: processes, cgroups,
// namespaces, links, filter tables and writable layers. Records, images, logs and
// keys stay; the next start records that the sandboxes were killed (see settleDown).
func Down(ctx context.Context, dataDir string, progress func(string)) error {
	if _, err := os.Stat(filepath.Join(dataDir, "secret")); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever started here
	}
	lock, err := takeOver(ctx, dataDir, progress)
	if err != nil {
		return err
	}
	defer lock.Close()
	sec, err := loadSecrets(dataDir)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(downMark(dataDir), nil, 0o600); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	progress("ending the sandboxes")
	rt, err := gvisor.New(gvisor.Config{CgroupParent: sec.cgroup(), Log: log})
	if err != nil {
		return err
	}
	none := func(nacre.MachineID) bool { return false }
	err = errors.Join(rt.Sweep(ctx, none), rt.Close(), rt.RemoveParent())
	progress("taking down the network")
	return errors.Join(err, network.Destroy(sec.instance), os.RemoveAll(handleDir(sec.instance)), clearDisk(ctx, dataDir))
}

// downMark says that the sandboxes which ran were ended by intent. It is there from
// before the first of them ends until their records say so.
func downMark(dataDir string) string { return filepath.Join(dataDir, "down") }

// settleDown ends the records of the sandboxes that Down has ended, before anybody
// could take their machines for lost. It may be interrupted and run again.
func settleDown(ctx context.Context, dataDir string, store nacre.SandboxStore) error {
	if _, err := os.Stat(downMark(dataDir)); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	running := nacre.SandboxFilter{AllTeams: true, Node: localNode, States: []nacre.State{nacre.StateRunning}, Limit: 1000}
	for {
		page, err := store.List(ctx, running)
		if err != nil {
			return err
		}
		for _, rec := range page.Sandboxes {
			if _, err := store.Update(ctx, rec.TeamID, rec.ID, endedByDown); err != nil {
				return err
			}
		}
		if running.Cursor = page.Next; page.Next == "" {
			return os.Remove(downMark(dataDir))
		}
	}
}

func endedByDown(r *nacre.Sandbox) ([]nacre.Event, error) {
	if err := r.Move(nacre.StateEnded); err != nil {
		return nil, err
	}
	r.EndReason, r.Detail, r.EndedAt = nacre.EndKilled, "its server was taken down with nacre down", time.Now()
	return []nacre.Event{{Time: r.EndedAt, TeamID: r.TeamID, SandboxID: r.ID, Kind: nacre.EventEnded,
		Data: map[string]string{"reason": string(r.EndReason), "detail": r.Detail}}}, nil
}

// clearDisk deletes the files of machines that are gone: a writable layer may be
// as large as its sandbox's disk.
func clearDisk(ctx context.Context, dataDir string) error {
	images, err := image.Open(image.Options{Dir: imagesDir(dataDir)})
	if err != nil {
		return err
	}
	err = images.Sweep(ctx, func(nacre.MachineID) bool { return false })
	return errors.Join(err, images.Close(), os.RemoveAll(filepath.Join(nodeDir(dataDir), "machines")))
}

// takeOver returns the data directory's lock, asking a server that has it to end.
func takeOver(ctx context.Context, dataDir string, progress func(string)) (*os.File, error) {
	asked := false
	for {
		lock, err := lockDataDir(dataDir)
		if err == nil {
			return lock, nil
		}
		if s := statusOf(dataDir); s != nil && !asked {
			asked = true
			progress(fmt.Sprintf("stopping the server (process %d)", s.PID))
			if err := syscall.Kill(s.PID, syscall.SIGTERM); err != nil {
				return nil, fmt.Errorf("stop the server (process %d): %w", s.PID, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
