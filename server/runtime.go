package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/runtime/firecracker"
	"github.com/nacrehq/nacre/runtime/gvisor"
)

// The values of --runtime.
const (
	runtimeAuto        = "auto"
	runtimeGVisor      = "gvisor"
	runtimeFirecracker = "firecracker"
)

// machineRuntime is a driver and what its owner may do with it.
type machineRuntime interface {
	nacre.Runtime
	Close() error
	RemoveParent() error
}

// FirecrackerDir is where `nacre setup firecracker` puts what it brings.
func FirecrackerDir(dataDir string) string { return filepath.Join(dataDir, "firecracker") }

// openRuntime makes the driver that --runtime names. A host has one at a time: what
// machines of the other one an earlier start left is no machine of this one, and is
// cleared when the node takes stock.
func openRuntime(ctx context.Context, c Config, cgroup, agent string, log *slog.Logger) (machineRuntime, error) {
	name, why := chooseRuntime(ctx, c)
	if why != nil && c.Runtime == runtimeFirecracker {
		return nil, fmt.Errorf("--runtime firecracker: %w", why)
	}
	if name == runtimeGVisor {
		return gvisor.New(gvisor.Config{CgroupParent: cgroup, Agent: agent, Log: log})
	}
	fc, _ := firecracker.Installed(FirecrackerDir(c.DataDir))
	fc.CgroupParent, fc.Log = cgroup, log
	fc.AllowHoles = os.Getenv("NACRE_FIRECRACKER_ALLOW_HOLES") != ""
	return firecracker.New(fc)
}

// chooseRuntime says which runtime this host is to use. With auto that is Firecracker
// where it was set up and the host's KVM really runs guests; why says what is against
// it, where it was set up or asked for.
func chooseRuntime(ctx context.Context, c Config) (name string, why error) {
	if c.Runtime == runtimeGVisor {
		return runtimeGVisor, nil
	}
	if _, ok := firecracker.Installed(FirecrackerDir(c.DataDir)); !ok {
		if c.Runtime == runtimeAuto {
			return runtimeGVisor, nil
		}
		return runtimeFirecracker, nacre.Errorf(nacre.CodeUnavailable, "Firecracker is not set up; run `nacre setup firecracker`")
	}
	self, err := os.Executable()
	if err == nil {
		err = firecracker.Probe(ctx, self)
	}
	if err != nil && c.Runtime == runtimeAuto {
		return runtimeGVisor, err
	}
	return runtimeFirecracker, err
}

// runtimeFinding is doctor's word about it.
func runtimeFinding(ctx context.Context, c Config) Finding {
	name, why := chooseRuntime(ctx, c)
	f := Finding{ID: "runtime", Level: "ok", What: "machines are made of " + name}
	switch {
	case why == nil:
	case c.Runtime == runtimeFirecracker:
		f.Level, f.Advice = "fail", nacre.ErrorMessage(why)
	default:
		f.Level, f.Advice = "warn", "Firecracker is set up and cannot be used: "+nacre.ErrorMessage(why)
	}
	return f
}
