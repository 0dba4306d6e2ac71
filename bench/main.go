// Command bench measures every figure that the README shows: `make bench`. It
// starts the built server on a data directory of its own, measures it through the
// published SDK and without it, measures its peers in the same run, prints a
// table and writes the raw figures to bench/results/latest.json. It reports and
// never judges: whether a target is met is for the reader to see.
//
// docs/benchmarks.md says how each figure is measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	nacre   string   // the binary under test
	cache   string   // what is expensive to make, shared with the server and the tests
	out     string   // file of the raw figures
	only    []string // names of benchmarks; empty means all
	n       int      // samples of a slow step; 0 means each benchmark's own number
	records int
	quick   bool
	full    bool
}

// samples is how often a step is measured.
func (o *options) samples(usual int) int {
	switch {
	case o.n > 0:
		return o.n
	case o.quick:
		return max(3, usual/10)
	}
	return usual
}

// size is how much is moved.
func (o *options) size(usual int64) int64 {
	if o.quick {
		return usual / 8
	}
	return usual
}

// benchmark is one group of figures.
type benchmark struct {
	name string
	what string
	run  func(context.Context, *bench) error
}

func benchmarks() []benchmark {
	return []benchmark{
		{"create", "a sandbox and its first command, with a standby", benchCreate},
		{"cold", "the same without a standby, beside runsc do", benchCold},
		{"exec", "a command in a running sandbox", benchExec},
		{"output", "a command that prints a lot", benchOutput},
		{"files", "large files in and out", benchFiles},
		{"pause", "pausing and resuming, by what is in memory", benchPause},
		{"fork", "snapshots of a running sandbox, and forks", benchFork},
		{"wake", "a request that resumes its sandbox", benchWake},
		{"chaos", "paused sandboxes resumed at random, compared", benchChaos},
		{"memory", "what an idle sandbox costs", benchMemory},
		{"firecracker", "what a microVM costs, on an emulated host where there is no other", benchFirecracker},
		{"burst", "a hundred creates at once", benchBurst},
		{"restart", "killing, and the server's own restart", benchRestart},
		{"control", "creates a second without machines", benchControl},
		{"records", "lists among many records", benchRecords},
		{"proxy", "what the edge adds to a request", benchProxy},
	}
}

// bench is one run.
type bench struct {
	options
	report *report
	shared *daemon // with standbys, for all that want one
}

func main() {
	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Print("bench: ", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	b := &bench{options: o, report: newReport(ctx, o)}
	defer func() {
		if b.shared != nil {
			b.shared.destroy()
		}
	}()
	var failed []error
	for _, m := range benchmarks() {
		if len(o.only) > 0 && !slices.Contains(o.only, m.name) {
			continue
		}
		log.Printf("%s: %s", m.name, m.what)
		begin := time.Now()
		if err := m.run(ctx, b); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			log.Printf("%s: %v", m.name, err)
			failed = append(failed, fmt.Errorf("%s: %w", m.name, err))
		}
		b.report.Seconds[m.name] = round(time.Since(begin).Seconds())
	}
	b.report.finish()
	b.report.print(os.Stdout)
	return errors.Join(append(failed, b.report.write(o.out))...)
}

func parseFlags() (options, error) {
	var o options
	var only string
	flag.StringVar(&o.nacre, "nacre", "bin/nacre", "the binary to measure; `make build` makes it")
	flag.StringVar(&o.cache, "cache-dir", "", "cache of the base image, the SDK and the peers (default NACRE_CACHE_DIR or /var/cache/nacre)")
	flag.StringVar(&o.out, "out", "bench/results/latest.json", "file for the raw figures")
	flag.StringVar(&only, "only", "", "run these benchmarks, comma separated: "+names())
	flag.IntVar(&o.n, "n", 0, "samples of each slow step, instead of the usual number")
	flag.IntVar(&o.records, "records", 0, "records to list among (default 100000; 1000000 with -full)")
	flag.BoolVar(&o.quick, "quick", false, "a tenth of the samples: shows that it works")
	flag.BoolVar(&o.full, "full", false, "what the README shows: a million records, a thousand paused sandboxes")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	if only != "" {
		o.only = strings.Split(only, ",")
		for _, name := range o.only {
			if !slices.ContainsFunc(benchmarks(), func(m benchmark) bool { return m.name == name }) {
				return o, fmt.Errorf("-only %s: there are %s", name, names())
			}
		}
	}
	if o.cache == "" {
		o.cache = os.Getenv("NACRE_CACHE_DIR")
	}
	if o.cache == "" {
		o.cache = "/var/cache/nacre"
	}
	if o.records == 0 {
		o.records = 100_000
		if o.full {
			o.records = 1_000_000
		}
	}
	if os.Geteuid() != 0 {
		return o, errors.New("run it as root: it starts the server")
	}
	var err error
	if o.nacre, err = filepath.Abs(o.nacre); err != nil {
		return o, err
	}
	if _, err := os.Stat(o.nacre); err != nil {
		return o, fmt.Errorf("%w; run `make build` first", err)
	}
	return o, nil
}

func names() string {
	var list []string
	for _, m := range benchmarks() {
		list = append(list, m.name)
	}
	return strings.Join(list, ",")
}
