package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/firecracker"
)

const hangs = "/dev/kvm is there, but hangs"

const hole = "Firecracker 1.14.0 has a known hole, CVE-1"

func virtual(setUp, fit, holed bool) virtualization {
	usable := func() error {
		if holed {
			return nacre.Errorf(nacre.CodeUnsupported, hole)
		}
		return nil
	}
	kernel := func() (firecracker.KernelState, error) { return firecracker.KernelState{Pinned: true}, nil }
	return virtualization{setUp: setUp, usable: usable, kernel: kernel, holes: func() error { return nil }, fit: func(context.Context) error {
		if fit {
			return nil
		}
		return nacre.Errorf(nacre.CodeUnavailable, hangs)
	}}
}

// TestChooseRuntimes: auto takes what the host is fit for, and gVisor always; what is
// asked for by name is had or refused with the reason and what to do.
func TestChooseRuntimes(t *testing.T) {
	for _, c := range []struct {
		text       string
		setUp, fit bool
		want       string // or what the error says, separated by |; with "holed|" before it, of a release with a hole
	}{
		{"auto", false, false, "[gvisor]"},
		{"auto", false, true, "[gvisor]"},
		{"auto", true, false, "[gvisor] " + hangs},
		{"auto", true, true, "[firecracker gvisor]"},
		{"gvisor", true, true, "[gvisor]"},
		{"firecracker", true, true, "[firecracker]"},
		{"firecracker,gvisor", true, true, "[firecracker gvisor]"},
		{"gvisor, firecracker", true, true, "[gvisor firecracker]"},
		{"firecracker", true, false, "error|--runtime firecracker|" + hangs + "|--runtime gvisor"},
		{"firecracker", false, false, "error|" + hangs + "|--runtime gvisor"},
		{"gvisor,firecracker", true, false, "error|" + hangs},
		{"firecracker", false, true, "error|not set up|nacre setup firecracker"},
		{"docker", true, true, "error|docker"},
		{"auto", true, true, "holed|[gvisor] " + hole},
		{"firecracker", true, true, "holed|error|" + hole},
		{"gvisor", true, true, "holed|[gvisor]"},
	} {
		want, holed := strings.CutPrefix(c.want, "holed|")
		c.want = want
		got, err := chooseRuntimes(t.Context(), c.text, virtual(c.setUp, c.fit, holed))
		if words, bad := strings.CutPrefix(c.want, "error|"); bad {
			for w := range strings.SplitSeq(words, "|") {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("%+v: %v does not say %q", c, err, w)
				}
			}
			continue
		}
		text := fmt.Sprint(got.made)
		if got.against != nil {
			text += " " + nacre.ErrorMessage(got.against)
		}
		if err != nil || text != c.want {
			t.Errorf("%+v: %s, %v", c, text, err)
		}
	}
}

// TestTheProbeIsNotRunInVain: it takes seconds where KVM hangs, at each start.
func TestTheProbeIsNotRunInVain(t *testing.T) {
	for text, setUp := range map[string]bool{"auto": false, "gvisor": true} {
		v := virtualization{setUp: setUp, fit: func(context.Context) error { t.Errorf("--runtime %s asks KVM", text); return nil }}
		if _, err := chooseRuntimes(t.Context(), text, v); err != nil {
			t.Error(err)
		}
	}
}

// TestChangingTheRuntimeEndsNoSandbox: a driver that machines of an earlier start run
// on is opened whatever --runtime says, to be kept; when it cannot be, the server does
// not start and says why, and what to do.
func TestChangingTheRuntimeEndsNoSandbox(t *testing.T) {
	host := nacretest.NewFakeHost()
	var broken nacre.RuntimeName
	var opened []string
	open := func(name nacre.RuntimeName, kept bool) (nacre.Runtime, error) {
		if name == broken {
			return nil, nacre.Errorf(nacre.CodeUnavailable, "its program is gone")
		}
		opened = append(opened, fmt.Sprint(name, " kept ", kept))
		return host.Daemon().Driver(nacre.Capabilities{Runtime: name, Snapshots: true, RestoreKey: string(name) + "/1"}), nil
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	firecracker := choice{made: []nacre.RuntimeName{"firecracker"}}
	running := map[nacre.RuntimeName]node.Running{"gvisor": {Sandboxes: 2}, "firecracker": {Standbys: 1}}
	r, err := openRuntime(firecracker, running, open, logger)
	if err != nil || strings.Join(opened, ", ") != "firecracker kept false, gvisor kept true" || !strings.Contains(log.String(), "gvisor") {
		t.Fatalf("%v, opened %v; log %s", err, opened, log.String())
	}
	can := r.Capabilities()
	if d, ok := can.Of("gvisor"); !ok || !d.Kept || can.Runtime != "firecracker" {
		t.Errorf("%+v", can)
	}
	if _, err := can.Offers("gvisor"); err == nil {
		t.Error("new ones are made on what is kept")
	}
	for _, broken = range []nacre.RuntimeName{"gvisor", "firecracker"} {
		_, err = openRuntime(firecracker, running, open, logger)
		if err == nil || !strings.Contains(err.Error(), string(broken)) || !strings.Contains(err.Error(), "its program is gone") {
			t.Errorf("without %s: %v", broken, err)
		}
	}
	broken = "gvisor"
	if _, err = openRuntime(firecracker, running, open, logger); !strings.Contains(fmt.Sprint(err), "2 sandboxes run on the runtime gvisor") || !strings.Contains(err.Error(), "nacre down") {
		t.Errorf("%v", err)
	}
	if _, err := openRuntime(firecracker, nil, open, logger); err != nil {
		t.Errorf("with nothing running on it: %v", err)
	}
	broken = ""
	// With auto a driver that cannot be opened is left out, unless machines run on it.
	auto := choice{made: []nacre.RuntimeName{"firecracker", "gvisor"}, auto: true}
	broken = "firecracker"
	if r, err := openRuntime(auto, nil, open, logger); err != nil || r.Name() != "gvisor" {
		t.Errorf("auto without Firecracker: %v", err)
	}
	if _, err := openRuntime(auto, running, open, logger); err == nil {
		t.Error("auto without Firecracker, whose machines run")
	}
	broken = ""
	later := func(name nacre.RuntimeName, kept bool) (nacre.Runtime, error) {
		if name == "docker" {
			return (&Server{}).drivers("", "")(name, kept)
		}
		return open(name, kept)
	}
	_, err = openRuntime(firecracker, map[nacre.RuntimeName]node.Running{"docker": {Sandboxes: 1}}, later, logger)
	if !strings.Contains(fmt.Sprint(err), "1 sandbox runs on the runtime docker") {
		t.Errorf("machines of a runtime that a later program had: %v", err)
	}
}

// TestDoctorOnRuntimes: it says what machines are made of, and what KVM really does.
func TestDoctorOnRuntimes(t *testing.T) {
	for _, c := range []struct {
		text       string
		setUp, fit bool
		runtime    string
		warned     string // of what is set up
		says       string
	}{
		{"auto", false, false, "ok", "", hangs},
		{"auto", false, true, "ok", "", "nacre setup firecracker"},
		{"auto", true, true, "ok", "", "runs guests"},
		{"auto", true, false, "ok", "warn", hangs},
		{"gvisor", true, false, "ok", "", hangs},
		{"firecracker", true, true, "ok", "", "runs guests"},
		{"firecracker", true, false, "fail", "", hangs},
		{"firecracker,gvisor", false, true, "fail", "", "nacre setup firecracker"},
	} {
		asked := 0
		v := virtual(c.setUp, c.fit, false)
		fit := v.fit
		v.fit = func(ctx context.Context) error { asked++; return fit(ctx) }
		got := runtimeFindings(t.Context(), c.text, v)
		warned := ""
		for _, f := range got {
			if f.ID == "firecracker" {
				warned = f.Level
			}
		}
		if got[0].Level != c.runtime || warned != c.warned || !strings.Contains(got[0].Advice+got[1].What, c.says) || asked != 1 {
			t.Errorf("%+v: %+v, KVM was asked %d times", c, got, asked)
		}
		for _, f := range got {
			if f.What == "" || f.Level != "ok" && f.Advice == "" {
				t.Errorf("%+v: %+v", c, f)
			}
		}
	}
}

// TestDoctorOnTheGuestKernel: an operator is told when it is older than the one that the
// program was made for, and what to do; an own one is no fault.
func TestDoctorOnTheGuestKernel(t *testing.T) {
	for _, c := range []struct {
		state firecracker.KernelState
		err   error
		level string
		says  string
	}{
		{firecracker.KernelState{Name: "Linux 6.12.117-nacre", Pinned: true}, nil, "ok", "Linux 6.12.117-nacre, the one that"},
		{firecracker.KernelState{Name: "Linux 6.12.117-nacre"}, nil, "ok", "built here or given by path"},
		{firecracker.KernelState{Name: "Linux 6.12.90-nacre", Behind: "it is older"}, nil, "warn", "Linux 6.12.90-nacre: it is older"},
		{firecracker.KernelState{}, io.ErrUnexpectedEOF, "warn", "cannot be read"},
	} {
		v := virtual(true, true, false)
		v.kernel = func() (firecracker.KernelState, error) { return c.state, c.err }
		found := false
		for _, f := range runtimeFindings(t.Context(), "auto", v) {
			if f.ID != "guest kernel" {
				continue
			}
			found = true
			if f.Level != c.level || !strings.Contains(f.What, c.says) || (c.level == "warn") != strings.Contains(f.Advice, "nacre setup firecracker") {
				t.Errorf("%+v, %v: %+v", c.state, c.err, f)
			}
		}
		if !found {
			t.Errorf("%+v: nothing is said of it", c.state)
		}
	}
	v := virtual(true, true, false)
	v.holes = virtual(true, true, true).usable
	if got := runtimeFindings(t.Context(), "auto", v); !slices.ContainsFunc(got, func(f Finding) bool {
		return f.Level == "warn" && f.What == hole && strings.Contains(f.Advice, "NACRE_FIRECRACKER_ALLOW_HOLES")
	}) {
		t.Errorf("a known hole that is taken all the same: %+v", got)
	}
	for _, f := range runtimeFindings(t.Context(), "auto", virtual(false, true, false)) {
		if f.ID == "guest kernel" {
			t.Errorf("of one that was not set up: %+v", f)
		}
	}
}

// TestSnapshotsThatFitNoMore: an operator is told how many sandboxes cannot be resumed
// since the runtime, its version or the processor is another.
func TestSnapshotsThatFitNoMore(t *testing.T) {
	taken := func(key string, pause bool, team nacre.TeamID) nacre.SnapshotManifest {
		return nacre.SnapshotManifest{ID: nacre.NewSnapshotID(), Team: team, Pause: pause, SnapshotInfo: nacre.SnapshotInfo{RestoreKey: key}}
	}
	list := []nacre.SnapshotManifest{
		taken("gvisor/2", true, "team_a"), taken("gvisor/1", true, "team_a"), taken("gvisor/1", false, "team_b"),
		taken("firecracker/1", true, "team_b"), taken("gvisor/1", false, nacre.SystemTeam),
	}
	got := unfitFindings(list, nacre.Capabilities{Runtime: "gvisor", Snapshots: true, RestoreKey: "gvisor/2"})
	if len(got) != 2 || !strings.Contains(got[0].What, "firecracker/1: 1, of which 1") || !strings.Contains(got[0].Advice, "firecracker again with --runtime") ||
		!strings.Contains(got[1].What, "gvisor/1: 2, of which 1") || got[1].Level != "warn" || got[1].Advice == "" {
		t.Errorf("%+v", got)
	}
	if got := unfitFindings(list[:1], nacre.Capabilities{Runtime: "gvisor", Snapshots: true, RestoreKey: "gvisor/2"}); len(got) > 0 {
		t.Errorf("of one that fits: %+v", got)
	}
}
