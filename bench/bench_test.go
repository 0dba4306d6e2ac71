package main

import (
	"bytes"
	"context"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/nacretest/pgtest"
	"github.com/nacrehq/nacre/sqlstore"
)

func TestPercentiles(t *testing.T) {
	hundred := series{}
	for i := range 100 {
		hundred.add(float64(100 - i))
	}
	for _, c := range []struct {
		s       series
		p, want float64
	}{
		{hundred, 50, 50}, {hundred, 95, 95}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{series{7}, 50, 7}, {series{7}, 99, 7}, {series{2, 1}, 50, 1}, {series{3, 1, 2}, 50, 2}, {series{3, 1, 2}, 99, 3},
	} {
		if got := c.s.at(c.p); got != c.want {
			t.Errorf("p%v of %v is %v, want %v", c.p, c.s, got, c.want)
		}
	}
	if !math.IsNaN(series{}.at(50)) {
		t.Error("nothing has a median")
	}
}

func TestRound(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 0.012345: 0.0123, 1.23456: 1.23, 12.3456: 12.3, 1234.56: 1235, -1.23456: -1.23} {
		if got := round(v); got != want {
			t.Errorf("%v became %v, want %v", v, got, want)
		}
	}
}

// TestTable: every figure is a line, with its target; one that was measured once
// has no percentiles.
func TestTable(t *testing.T) {
	r := newReport(context.Background(), options{nacre: "/bin/false"})
	r.add("many", "ms", series{1, 2, 3}, "<= 10", "")
	r.value("once", "x", 0.5, "", "")
	r.add("none", "ms", nil, "", "")
	r.finish()
	var out bytes.Buffer
	r.print(&out)
	for _, want := range []string{"many  3  2    3    3    ms    <= 10", "once  1  0.5            x"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "none") {
		t.Error("what was not measured is reported")
	}
	path := t.TempDir() + "/results/latest.json"
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); !bytes.Contains(text, []byte(`"kernel"`)) || !bytes.Contains(text, []byte(`"p99": 3`)) {
		t.Errorf("%s", text)
	}
}

// TestPeerIsOurGVisor: the peer is built from the version that is embedded.
func TestPeerIsOurGVisor(t *testing.T) {
	version := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\t"+gvisorModule+" ")
		return strings.Fields(rest)[0]
	}
	if ours, peers := version("../go.mod"), version("peer/go.mod"); ours != peers {
		t.Errorf("bench/peer/go.mod has %s, go.mod %s", peers, ours)
	}
}

func TestNoise(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if n, err := io.CopyBuffer(struct{ io.Writer }{w}, &noise{block: noiseBlock(), left: 3<<20 + 7}, make([]byte, 1000+w.Len())); err != nil || n != 3<<20+7 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) || bytes.Count(a.Bytes()[:4096], []byte{0}) > 100 {
		t.Error("it is not the same noise each time")
	}
}

func TestStorm(t *testing.T) {
	all, rate, err := storm(t.Context(), 4, 20*time.Millisecond, func() error { time.Sleep(time.Millisecond); return nil })
	if err != nil || len(all) == 0 || rate <= 0 {
		t.Errorf("%d calls, %v a second, %v", len(all), rate, err)
	}
	if _, _, err := storm(t.Context(), 4, time.Hour, func() error { return io.ErrUnexpectedEOF }); err == nil {
		t.Error("an error is lost")
	}
}

// TestRecords: what is listed among is as many records as were asked for, in either
// store, and each query finds some.
func TestRecords(t *testing.T) {
	on := map[string]recordStore{"SQLite": onSQLite(t.TempDir())}
	if os.Getenv("NACRE_SKIP_POSTGRES") == "" {
		url, err := pgtest.Start(t).Database(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		on["PostgreSQL"] = onPostgres(url)
	}
	for name, on := range on {
		t.Run(name, func(t *testing.T) {
			b := &bench{options: options{records: 4000, n: 2}, report: newReport(t.Context(), options{nacre: "/bin/false"})}
			if err := b.recordsOn(t.Context(), on); err != nil {
				t.Fatal(err)
			}
			db, err := sqlstore.Open(t.Context(), on.url, sqlstore.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if n, err := db.Count(t.Context(), nacre.SandboxFilter{AllTeams: true}); n < b.records*99/100 || n > b.records || err != nil {
				t.Errorf("%d records of %d, %v", n, b.records, err)
			}
			of := nacre.SandboxFilter{AllTeams: true, Metadata: map[string]string{"region": "eu"}}
			if n, err := db.Count(t.Context(), of); n < b.records/5 || err != nil {
				t.Errorf("%d of %d have their metadata, %v", n, b.records, err)
			}
		})
	}
}

// TestWriteDurably: it leaves nothing, on whatever file system.
func TestWriteDurably(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		for _, size := range []int64{1, 9 << 20} {
			took, err := writeDurably(dir, size)
			if err != nil || took <= 0 {
				t.Errorf("%s: %v, %v", dir, took, err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "raw-write")); !os.IsNotExist(err) {
			t.Errorf("%s: it left its file: %v", dir, err)
		}
	}
}
