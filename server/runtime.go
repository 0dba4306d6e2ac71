package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/node"
	"github.com/nacrehq/nacre/runtime/firecracker"
	"github.com/nacrehq/nacre/runtime/gvisor"
	"github.com/nacrehq/nacre/runtime/mixed"
)

// runtimeAuto is --runtime's word for what the host is fit for.
const runtimeAuto = "auto"

// FirecrackerDir is where `nacre setup firecracker` puts what it brings.
func FirecrackerDir(dataDir string) string { return filepath.Join(dataDir, "firecracker") }

// parseRuntimes reads --runtime: nil for auto, else the drivers, of which the first
// makes the machines that ask for none.
func parseRuntimes(text string) ([]nacre.RuntimeName, error) {
	if text == runtimeAuto {
		return nil, nil
	}
	var out []nacre.RuntimeName
	for word := range strings.SplitSeq(text, ",") {
		name := nacre.RuntimeName(strings.TrimSpace(word))
		if name != nacre.RuntimeGVisor && name != nacre.RuntimeFirecracker || slices.Contains(out, name) {
			return nil, fmt.Errorf("--runtime %q: want auto, gvisor, firecracker, or both with a comma, the default first", text)
		}
		out = append(out, name)
	}
	return out, nil
}

// parseTemplateRuntimes reads --template-runtime: TEMPLATE=RUNTIME.
func parseTemplateRuntimes(entries []string) (map[string]nacre.RuntimeName, error) {
	out := map[string]nacre.RuntimeName{}
	for _, e := range entries {
		template, name, _ := strings.Cut(e, "=")
		if list, err := parseRuntimes(name); !isBuiltin(template) || err != nil || len(list) != 1 {
			return nil, fmt.Errorf("--template-runtime %q: want TEMPLATE=RUNTIME, of a built-in template, such as python=gvisor", e)
		}
		out[template] = nacre.RuntimeName(name)
	}
	return out, nil
}

func isBuiltin(template string) bool {
	return slices.ContainsFunc(builtins[:], func(b builtin) bool { return slices.Contains(b.names, template) })
}

// virtualization is what a host has for Firecracker.
type virtualization struct {
	setUp  bool
	fit    func(context.Context) error // why KVM does not run guests; it takes seconds where that hangs
	usable func() error                // why what was set up is refused, such as a release with a known hole
	kernel func() (firecracker.KernelState, error)
	holes  func() error // the known hole of what is taken all the same, nil where there is none
}

func hostVirtualization(dataDir string) virtualization {
	c, ok := firecrackerConfig(dataDir)
	kernel := func() (firecracker.KernelState, error) { return firecracker.InstalledKernel(FirecrackerDir(dataDir)) }
	holes := func() error {
		if !c.AllowHoles {
			return nil // usable says so
		}
		strict := c
		strict.AllowHoles = false
		return strict.Usable()
	}
	return virtualization{setUp: ok, usable: c.Usable, kernel: kernel, holes: holes, fit: func(ctx context.Context) error {
		self, err := os.Executable()
		if err == nil {
			err = firecracker.Probe(ctx, self)
		}
		return err
	}}
}

func firecrackerConfig(dataDir string) (firecracker.Config, bool) {
	c, ok := firecracker.Installed(FirecrackerDir(dataDir))
	c.AllowHoles = os.Getenv("NACRE_FIRECRACKER_ALLOW_HOLES") != ""
	return c, ok
}

// choice is what --runtime comes to on this host.
type choice struct {
	made    []nacre.RuntimeName // what new machines are made of, the default first
	against error               // why Firecracker is not among them, where it was set up and is not ruled out
	auto    bool                // what cannot be opened is left out
}

// chooseRuntimes decides. With auto Firecracker goes first where it was set up and the
// host's KVM really runs guests, and gVisor is there always. What is asked for by name
// and cannot be had is an error.
func chooseRuntimes(ctx context.Context, text string, v virtualization) (choice, error) {
	asked, err := parseRuntimes(text)
	switch {
	case err != nil:
		return choice{}, err
	case asked == nil && !v.setUp:
		return choice{made: []nacre.RuntimeName{nacre.RuntimeGVisor}, auto: true}, nil
	case asked == nil:
		against := v.usable()
		if against == nil {
			against = v.fit(ctx)
		}
		if against != nil {
			return choice{made: []nacre.RuntimeName{nacre.RuntimeGVisor}, against: against, auto: true}, nil
		}
		return choice{made: []nacre.RuntimeName{nacre.RuntimeFirecracker, nacre.RuntimeGVisor}, auto: true}, nil
	case !slices.Contains(asked, nacre.RuntimeFirecracker):
		return choice{made: asked}, nil
	}
	// First what cannot be mended by setting it up.
	if against := v.fit(ctx); against != nil {
		return choice{}, fmt.Errorf("--runtime %s: this host cannot run Firecracker machines. %s. gVisor needs no virtualization: start with --runtime gvisor or auto",
			text, upperFirst(nacre.ErrorMessage(against)))
	}
	if !v.setUp {
		return choice{}, fmt.Errorf("--runtime %s: Firecracker is not set up for this data directory; this host can run it: `nacre setup firecracker` brings it", text)
	}
	if err := v.usable(); err != nil {
		return choice{}, fmt.Errorf("--runtime %s: what was set up cannot be used. %s", text, upperFirst(nacre.ErrorMessage(err)))
	}
	return choice{made: asked}, nil
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// drivers opens drivers by their names. One that is kept makes no machines.
type drivers func(name nacre.RuntimeName, kept bool) (nacre.Runtime, error)

func (s *Server) drivers(cgroup, agent string) drivers {
	return func(name nacre.RuntimeName, kept bool) (nacre.Runtime, error) {
		if name == nacre.RuntimeGVisor {
			c := gvisor.Config{CgroupParent: cgroup, Agent: agent, Log: s.log}
			if kept {
				c.Ahead = -1
			}
			return gvisor.New(c)
		}
		if name != nacre.RuntimeFirecracker {
			return nil, errors.New("this program does not know it")
		}
		c, _ := firecrackerConfig(s.cfg.DataDir)
		c.CgroupParent, c.Agent, c.Log, c.BootTimeout = cgroup, agent, s.log, 2*s.cfg.BootTimeout
		return firecracker.New(c)
	}
}

// openRuntime opens what the choice makes machines of, and beside it, to be kept, what
// machines of an earlier start run on: whoever changes --runtime ends no sandbox by it.
// What cannot be opened is an error while it has machines: they are left alone.
func openRuntime(c choice, running map[nacre.RuntimeName]node.Running, open drivers, log *slog.Logger) (*mixed.Runtime, error) {
	var made, kept []nacre.Runtime
	undo := func() {
		for _, d := range slices.Concat(made, kept) {
			if c, ok := d.(interface{ Close() error }); ok {
				_ = c.Close()
			}
		}
	}
	for _, name := range c.made {
		d, err := open(name, false)
		if _, needed := running[name]; err != nil && c.auto && name == nacre.RuntimeFirecracker && !needed {
			log.Warn("Firecracker is set up and cannot be used", "reason", nacre.ErrorMessage(err), "err", err)
			continue
		}
		if err != nil {
			undo()
			return nil, fmt.Errorf("the runtime %s: %w", name, err)
		}
		made = append(made, d)
	}
	for _, name := range slices.Sorted(maps.Keys(running)) {
		if slices.Contains(c.made, name) {
			continue
		}
		d, err := open(name, true)
		if err != nil {
			undo()
			return nil, fmt.Errorf("%s on the runtime %s, which cannot be opened: %s. Nothing was touched: mend that and start again, or end all sandboxes with `nacre down`",
				running[name], name, nacre.ErrorMessage(err))
		}
		log.Warn("machines of an earlier start go on, and no new ones are made on their runtime", "runtime", name,
			"sandboxes", running[name].Sandboxes, "standbys", running[name].Standbys)
		kept = append(kept, d)
	}
	r, err := mixed.New(made, kept)
	if err != nil {
		undo()
	}
	return r, err
}

// runtimeFindings are doctor's words about it.
func runtimeFindings(ctx context.Context, text string, v virtualization) []Finding {
	fit := v.fit(ctx)
	v.fit = func(context.Context) error { return fit } // once: where it hangs it takes long
	out := Finding{ID: "runtime", Level: "ok"}
	c, err := chooseRuntimes(ctx, text, v)
	if err != nil {
		out.Level, out.What, out.Advice = "fail", "--runtime "+text+" cannot be had", err.Error()
	} else {
		out.What = "new machines are made of " + string(c.made[0])
		if len(c.made) > 1 {
			out.What += ", and of " + string(c.made[1]) + " where a create or a template asks for it"
		}
	}
	kvm := Finding{ID: "kvm", Level: "ok", What: "the host's KVM runs guests, so Firecracker machines can be made"}
	switch {
	case fit != nil:
		kvm.What = "no Firecracker machines here, and gVisor needs none of it: " + nacre.ErrorMessage(fit)
	case !v.setUp:
		kvm.What += " once `nacre setup firecracker` has brought it"
	}
	found := []Finding{out, kvm}
	if v.setUp {
		found = append(found, kernelFinding(v.kernel()))
		if err := v.holes(); err != nil {
			found = append(found, Finding{ID: "firecracker holes", Level: "warn", What: nacre.ErrorMessage(err),
				Advice: "NACRE_FIRECRACKER_ALLOW_HOLES takes it all the same, which is for tests: unset it, and run `nacre setup firecracker`"})
		}
	}
	if c.against != nil {
		found = append(found, Finding{ID: "firecracker", Level: "warn", What: "Firecracker is set up and cannot be used", Advice: nacre.ErrorMessage(c.against)})
	}
	return found
}

// kernelFinding is of the guest kernel that was set up. One of somebody's own is not judged,
// unless it is older.
func kernelFinding(k firecracker.KernelState, err error) Finding {
	f := Finding{ID: "guest kernel", Level: "ok", What: "new microVMs boot " + k.Name}
	switch {
	case err != nil:
		f.Level, f.What, f.Advice = "warn", "the guest kernel that was set up cannot be read: "+err.Error(), "run `nacre setup firecracker` again"
	case k.Pinned:
		f.What += ", the one that this version of nacre was made for"
	case k.Behind != "":
		f.Level, f.What = "warn", f.What+": "+k.Behind
		f.Advice = "run `nacre setup firecracker` again, with --kernel if it is to be one of yours. What runs, and what was kept of it, stays with the kernel that it booted"
	default:
		f.What += ", built here or given by path: as good as the one that this version of nacre was made for if it is of the same options"
	}
	return f
}

// unfitFindings are of the snapshots that were here at the start and that nothing goes
// on from as long as the server runs like this. Those of templates are made anew.
func unfitFindings(list []nacre.SnapshotManifest, can nacre.Capabilities) []Finding {
	type count struct{ all, paused int }
	of := map[string]count{}
	for _, m := range list {
		if m.Team == nacre.SystemTeam || can.CanRestore(m.ID, m.RestoreKey) == nil {
			continue
		}
		c := of[m.RestoreKey]
		c.all++
		if m.Pause {
			c.paused++
		}
		of[m.RestoreKey] = c
	}
	var out []Finding
	for _, key := range slices.Sorted(maps.Keys(of)) {
		advice := "they fit this runtime, version and processor alone: start the server as it was, or delete them"
		if _, err := can.Offers(nacre.RuntimeOf(key)); err != nil {
			advice = fmt.Sprintf("offer %s again with --runtime, or delete them", nacre.RuntimeOf(key))
		}
		out = append(out, Finding{ID: "snapshots " + key, Level: "warn", Advice: advice,
			What: fmt.Sprintf("snapshots that cannot be restored here, taken on %s: %d, of which %d are paused sandboxes", key, of[key].all, of[key].paused)})
	}
	return out
}
