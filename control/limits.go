package control

import (
	"fmt"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// Limits bound what a team may ask for. Zero fields mean the defaults.
type Limits struct {
	DefaultTimeout time.Duration // 5 minutes
	MaxTimeout     time.Duration // 24 hours
	MaxPerTeam     int           // sandboxes of one team that are alive and not paused; 0 = no limit
	MaxPaused      int           // paused ones of one team; 0 = no limit
	// MaxSnapshotBytes is what a team's snapshots and paused sandboxes may occupy on
	// disk; 0 = no limit. It is compared before one is taken, so the last may exceed
	// it, as may a sandbox that is paused because its time is over.
	MaxSnapshotBytes int64
	Default          nacre.Resources // where neither request nor template says: 2 processors, 1024 MiB, 10 GiB, 4096 tasks
	Max              nacre.Resources // 32 processors, 64 GiB, 1 TiB, 32768 tasks
}

func (l *Limits) setDefaults() {
	setDefault(&l.DefaultTimeout, 5*time.Minute)
	setDefault(&l.MaxTimeout, 24*time.Hour)
	l.Default = fill(l.Default, nacre.Resources{CPUs: 2, MemoryMiB: 1024, DiskMiB: 10 << 10, MaxPIDs: 4096})
	l.Max = fill(l.Max, nacre.Resources{CPUs: 32, MemoryMiB: 64 << 10, DiskMiB: 1 << 20, MaxPIDs: 32768})
}

func (l *Limits) checkTimeout(d time.Duration) error {
	if d <= 0 {
		return nacre.Invalidf("Timeout", "Timeout must be greater than 0")
	}
	if d > l.MaxTimeout {
		hours := strconv.FormatFloat(l.MaxTimeout.Hours(), 'f', -1, 64)
		return nacre.Invalidf("Timeout", "Timeout cannot be greater than %s hours", hours)
	}
	return nil
}

// resources fills what the request left open and holds the rest to the limits.
func (l *Limits) resources(asked, template nacre.Resources) (nacre.Resources, error) {
	r := fill(fill(asked, template), l.Default)
	least := nacre.Resources{CPUs: 1, MemoryMiB: 64, DiskMiB: 16, MaxPIDs: 16}
	for _, f := range []struct {
		name          string
		got, min, max int
	}{
		{"CPUs", r.CPUs, least.CPUs, l.Max.CPUs},
		{"MemoryMiB", r.MemoryMiB, least.MemoryMiB, l.Max.MemoryMiB},
		{"DiskMiB", r.DiskMiB, least.DiskMiB, l.Max.DiskMiB},
		{"MaxPIDs", r.MaxPIDs, least.MaxPIDs, l.Max.MaxPIDs},
	} {
		if f.got < f.min || f.got > f.max {
			return r, nacre.Invalidf("Resources."+f.name, "%s", fmt.Sprintf("Resources.%s is %d; it must be between %d and %d", f.name, f.got, f.min, f.max))
		}
	}
	return r, nil
}

// fill returns r with its zero fields taken from d.
func fill(r, d nacre.Resources) nacre.Resources {
	r.HugePages = r.HugePages || d.HugePages
	setDefault(&r.CPUs, d.CPUs)
	setDefault(&r.MemoryMiB, d.MemoryMiB)
	setDefault(&r.DiskMiB, d.DiskMiB)
	setDefault(&r.MaxPIDs, d.MaxPIDs)
	return r
}
