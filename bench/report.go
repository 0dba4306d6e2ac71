package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// figure is one measured quantity. One that was measured once has N = 1 and the
// same number everywhere.
type figure struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	P50    float64 `json:"p50"`
	P95    float64 `json:"p95"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
	Target string  `json:"target,omitempty"`
	Note   string  `json:"note,omitempty"`
}

// report is the whole run.
type report struct {
	Started  time.Time          `json:"started"`
	Command  string             `json:"command"`
	Host     hostFacts          `json:"host"`
	Versions map[string]string  `json:"versions"`
	Seconds  map[string]float64 `json:"seconds"` // that each benchmark took
	Figures  []figure           `json:"figures"`
}

// hostFacts say what the figures were measured on. The load averages tell whether
// it was doing something else.
type hostFacts struct {
	Kernel     string `json:"kernel"`
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	MemoryMiB  int64  `json:"memory_mib"`
	Distro     string `json:"distribution"`
	LoadBefore string `json:"load_before"`
	LoadAfter  string `json:"load_after"`
}

func newReport(ctx context.Context, o options) *report {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info)
	r := &report{
		Started: time.Now().UTC().Truncate(time.Second),
		Command: "bench " + strings.Join(os.Args[1:], " "),
		Host: hostFacts{
			Kernel: unix.ByteSliceToString(uts.Release[:]), CPU: field("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
			MemoryMiB: int64(info.Totalram) * int64(info.Unit) >> 20, Distro: strings.Trim(field("/etc/os-release", "PRETTY_NAME"), `"`),
			LoadBefore: load(),
		},
		Versions: map[string]string{"go": runtime.Version()},
		Seconds:  map[string]float64{},
	}
	if out, err := exec.CommandContext(ctx, o.nacre, "--version").Output(); err == nil {
		r.Versions["nacre"] = strings.TrimPrefix(strings.TrimSpace(string(out)), "nacre version ")
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, m := range bi.Deps {
			if m.Path == gvisorModule {
				r.Versions["gvisor"] = m.Version
			}
		}
	}
	return r
}

// field reads "name : value" or "name=value" of a file.
func field(path, name string) string {
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimLeft(strings.TrimSpace(rest), " \t:=")
		}
	}
	return ""
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(text))
	return strings.Join(f[:min(3, len(f))], " ")
}

// series are the samples of one quantity.
type series []float64

func (s *series) add(v float64)              { *s = append(*s, v) }
func (s *series) since(t time.Time)          { s.add(millis(time.Since(t))) }
func millis(d time.Duration) float64         { return float64(d.Nanoseconds()) / 1e6 }
func perSecond(n int64, t time.Time) float64 { return float64(n) / 1e6 / time.Since(t).Seconds() } // megabytes
func round(v float64) float64 {
	p := math.Pow(10, max(0, 3-math.Ceil(math.Log10(math.Abs(v)+1e-9))))
	return math.Round(v*p) / p
}
func (s series) sorted() series { return slices.Sorted(slices.Values(s)) }

// at returns the p-th percentile: the smallest sample that p % do not exceed.
func (s series) at(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := s.sorted()
	return sorted[min(len(s)-1, max(0, int(math.Ceil(p/100*float64(len(s))))-1))]
}

// add reports a quantity. It needs at least one sample.
func (r *report) add(name, unit string, s series, target, note string) {
	if len(s) == 0 {
		return
	}
	f := figure{Name: name, Unit: unit, N: len(s), Min: round(s.at(0)), P50: round(s.at(50)), P95: round(s.at(95)),
		P99: round(s.at(99)), Max: round(s.at(100)), Target: target, Note: note}
	r.Figures = append(r.Figures, f)
	log.Printf("    %-52s %10s %s", name, number(f.P50), unit)
}

// value reports a quantity that was measured or derived once.
func (r *report) value(name, unit string, v float64, target, note string) {
	r.add(name, unit, series{v}, target, note)
}

func (r *report) finish() { r.Host.LoadAfter = load() }

func number(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", v), "0"), ".")
}

// print writes the table.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s, %d x %s, %d MiB, Linux %s, load %s before and %s after\n", r.Host.Distro, r.Host.CPUs, r.Host.CPU,
		r.Host.MemoryMiB, r.Host.Kernel, r.Host.LoadBefore, r.Host.LoadAfter)
	for _, name := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(w, "%s %s  ", name, r.Versions[name])
	}
	fmt.Fprint(w, "\n\n")
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "what\tn\tp50\tp95\tp99\tunit\ttarget")
	for _, f := range r.Figures {
		p95, p99 := number(f.P95), number(f.P99)
		if f.N == 1 {
			p95, p99 = "", ""
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", f.Name, f.N, number(f.P50), p95, p99, f.Unit, f.Target)
	}
	_ = t.Flush()
}

// write puts the raw figures into a file.
func (r *report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
