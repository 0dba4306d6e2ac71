package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/blob"
	"github.com/nacrehq/nacre/image"
	"github.com/nacrehq/nacre/nacretest"
)

// artifacts is a store under test with the process that has it.
type artifacts struct {
	*image.Artifacts
	tb    testing.TB
	dir   string
	blobs *fuseBlobs
	fuse  *fuse
	tweak func(*image.ArtifactOptions)
}

// fuse kills the process at a step: from then on nothing has an effect.
type fuse struct {
	mu   sync.Mutex
	left int // steps until the kill; 0 never
	dead bool
}

var errDead = errors.New("the process was killed")

func (f *fuse) step(string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left > 0 {
		f.left--
		f.dead = f.dead || f.left == 0
	}
	if f.dead {
		return errDead
	}
	return nil
}

func (f *fuse) burnt() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

func (f *fuse) light(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = n
}

// fuseBlobs are blobs that count and may be full.
type fuseBlobs struct {
	nacre.BlobStore
	full atomic.Bool
	puts atomic.Int64
}

func (b *fuseBlobs) Put(ctx context.Context, key string, r io.Reader) (nacre.Blob, error) {
	if b.full.Load() {
		return nacre.Blob{}, nacre.Wrap(nacre.CodeNoSpace, unix.ENOSPC, "the disk is full")
	}
	b.puts.Add(1)
	return b.BlobStore.Put(ctx, key, r)
}

// TestTransientWaitsForNoDisk: of a snapshot that ends with its process nothing is
// synced and no manifest is written.
func TestTransientWaitsForNoDisk(t *testing.T) {
	var steps []string
	a := newArtifacts(t, func(o *image.ArtifactOptions) {
		o.Step = func(step string) error { steps = append(steps, step); return nil }
	})
	f := nacretest.RandomFiles(rand.New(rand.NewPCG(1, 2)), 4)
	m := f.Manifest(nacre.NewSnapshotID())
	m.Transient = true
	if _, err := f.Keep(t.Context(), a.Artifacts, m); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(steps, []string{"create"}) {
		t.Errorf("the steps were %q", steps)
	}
}

func newArtifacts(tb testing.TB, tweak func(*image.ArtifactOptions)) *artifacts {
	return openArtifacts(tb, tb.TempDir(), &fuseBlobs{BlobStore: blob.NewMemory()}, tweak)
}

func openArtifacts(tb testing.TB, dir string, blobs *fuseBlobs, tweak func(*image.ArtifactOptions)) *artifacts {
	tb.Helper()
	f := &fuse{}
	o := image.ArtifactOptions{Dir: dir, Blobs: blobs, Step: f.step, ReserveMiB: -1,
		Settle: time.Nanosecond, Quiet: time.Nanosecond, Rest: 0.001, Collect: time.Nanosecond}
	if tweak != nil {
		tweak(&o)
	}
	s, err := image.OpenArtifacts(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return &artifacts{s, tb, dir, blobs, f, tweak}
}

// restart kills the process and starts another over what it left.
func (a *artifacts) restart() *artifacts {
	a.tb.Helper()
	a.fuse.light(1)
	_ = a.fuse.step("")
	a.Close()
	b := openArtifacts(a.tb, a.dir, a.blobs, a.tweak)
	if err := b.Sweep(context.Background()); err != nil {
		a.tb.Fatal(err)
	}
	return b
}

func (a *artifacts) underTest() nacretest.ArtifactsUnderTest {
	return nacretest.ArtifactsUnderTest{Store: a.Artifacts, Restart: func(*testing.T) nacretest.ArtifactsUnderTest { return a.restart().underTest() }}
}

func TestArtifactContract(t *testing.T) {
	nacretest.TestArtifactStore(t, func(t *testing.T) nacretest.ArtifactsUnderTest { return newArtifacts(t, nil).underTest() })
}

// TestArtifactContractInBackground: the same while everything is cut into chunks
// and dropped as soon as it can be.
func TestArtifactContractInBackground(t *testing.T) {
	nacretest.TestArtifactStore(t, func(t *testing.T) nacretest.ArtifactsUnderTest {
		var under func(a *artifacts) nacretest.ArtifactsUnderTest
		under = func(a *artifacts) nacretest.ArtifactsUnderTest {
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = a.Work(ctx)
					_ = a.DropAll()
				}
			})
			end := func() { cancel(); wg.Wait() }
			t.Cleanup(end)
			return nacretest.ArtifactsUnderTest{Store: a.Artifacts, Restart: func(*testing.T) nacretest.ArtifactsUnderTest {
				end()
				return under(a.restart())
			}}
		}
		return under(newArtifacts(t, nil))
	})
}

func (a *artifacts) must(err error) {
	a.tb.Helper()
	if err != nil {
		a.tb.Fatal(err)
	}
}

func (a *artifacts) keep(f nacretest.ArtifactFiles) nacre.SnapshotID {
	a.tb.Helper()
	m, err := f.Keep(context.Background(), a, f.Manifest(nacre.NewSnapshotID()))
	a.must(err)
	return m.ID
}

// open compares what the snapshot holds.
func (a *artifacts) open(id nacre.SnapshotID, want nacretest.ArtifactFiles) error {
	dir, _, release, err := a.Open(context.Background(), id)
	if err != nil {
		return err
	}
	defer release()
	return want.Compare(dir)
}

// plain lists what the directory of plain copies has.
func (a *artifacts) plain() []string {
	entries, err := os.ReadDir(filepath.Join(a.dir, "plain"))
	a.must(err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (a *artifacts) chunks() (n int, bytes int64) {
	err := a.blobs.List(context.Background(), "", func(b nacre.Blob) error { n++; bytes += b.Size; return nil })
	a.must(err)
	return n, bytes
}

func files(seed uint64, pages int) nacretest.ArtifactFiles {
	return nacretest.RandomFiles(rand.New(rand.NewPCG(seed, 0)), pages)
}

// TestChunksCostWhatChanged: of the second snapshot of a sandbox, whose pages moved
// because one came in between, and of each of many forks, little is new; zeros and holes
// cost nothing.
func TestChunksCostWhatChanged(t *testing.T) {
	a := newArtifacts(t, nil)
	first := files(1, 4096) // 16 MiB
	a.keep(first)
	a.must(a.Work(t.Context()))
	_, whole := a.chunks()
	cost := func(change func(memory []byte) []byte) int64 {
		t.Helper()
		_, before := a.chunks()
		f := maps.Clone(first)
		f["memory"] = change(bytes.Clone(first["memory"]))
		id := a.keep(f)
		a.must(a.Work(t.Context()))
		a.must(a.DropAll())
		a.must(a.open(id, f))
		_, after := a.chunks()
		return after - before
	}
	page := bytes.Repeat([]byte("new page"), 512)
	moved := cost(func(m []byte) []byte { return slices.Insert(m, 999*4096, page...) })
	if ratio := float64(moved) / float64(whole); ratio > 0.03 {
		t.Errorf("one page more cost %.1f %% of the whole", 100*ratio)
	}
	forks := int64(0)
	const count = 20
	for i := range count {
		forks += cost(func(m []byte) []byte { copy(m[(i*77%4096)*4096:], fmt.Appendf(page[:0:0], "fork %d", i)); return m })
	}
	t.Logf("one snapshot %d KiB, the second %d KiB, a fork %d KiB", whole>>10, moved>>10, forks/count>>10)
	if ratio := float64(forks) / count / float64(whole); ratio > 0.03 {
		t.Errorf("a fork cost %.1f %% of the whole", 100*ratio)
	}
	if zeros := cost(func(m []byte) []byte { return append(m, make([]byte, 64<<20)...) }); zeros > 2048 {
		t.Errorf("64 MiB of zeros cost %d bytes", zeros)
	}
}

// TestHolesAreKept: a sparse file is sparse again.
func TestHolesAreKept(t *testing.T) {
	a := newArtifacts(t, nil)
	id := nacre.NewSnapshotID()
	dir, err := a.Create(t.Context(), id)
	a.must(err)
	f, err := os.Create(filepath.Join(dir, "sparse"))
	a.must(err)
	a.must(f.Truncate(1 << 30))
	_, err = f.WriteAt([]byte("here"), 700<<20)
	a.must(errors.Join(err, f.Close()))
	m := nacretest.ArtifactFiles{"sparse": nil}.Manifest(id)
	m.Files[0].Size = 1 << 30
	_, err = a.Commit(t.Context(), m)
	a.must(err)
	a.must(a.Work(t.Context()))
	a.must(a.DropAll())
	if got := a.plain(); len(got) != 0 {
		t.Fatalf("not dropped: %v", got)
	}
	dir, _, release, err := a.Open(t.Context(), id)
	a.must(err)
	defer release()
	var st unix.Stat_t
	a.must(unix.Stat(filepath.Join(dir, "sparse"), &st))
	got := make([]byte, 4)
	f, err = os.Open(filepath.Join(dir, "sparse"))
	a.must(err)
	defer f.Close()
	if _, err := f.ReadAt(got, 700<<20); string(got) != "here" || err != nil || st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("%q, %v, %d bytes in %d", got, err, st.Size, st.Blocks*512)
	}
}

// TestLeastUsedGoFirst: above the limit plain copies go, the longest unused first,
// never one that is open or has no chunks yet.
func TestLeastUsedGoFirst(t *testing.T) {
	now := time.Now()
	a := newArtifacts(t, func(o *image.ArtifactOptions) { o.PlainMiB = 5; o.Clock = func() time.Time { return now } })
	var ids []nacre.SnapshotID
	var fs []nacretest.ArtifactFiles
	for i := range 4 {
		now = now.Add(time.Second)
		fs = append(fs, files(uint64(i), 512)) // 2 MiB
		ids = append(ids, a.keep(fs[i]))
	}
	now = now.Add(time.Second)
	a.must(a.open(ids[0], fs[0])) // used last
	_, _, release, err := a.Open(t.Context(), ids[1])
	a.must(err)
	a.must(a.Work(t.Context()))
	want := []string{string(ids[0]), string(ids[1])} // 2 and 3 went, for 1 is open
	slices.Sort(want)
	if got := a.plain(); !slices.Equal(got, want) {
		t.Errorf("plain copies: %v, want %v", got, want)
	}
	release()
	for i := range ids {
		a.must(a.open(ids[i], fs[i]))
	}
}

// TestArtifactsAtRandom: whatever is done in whatever order, and whenever the process
// is killed, what exists has its bytes.
func TestArtifactsAtRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := newArtifacts(t, nil)
		exists := map[nacre.SnapshotID]nacretest.ArtifactFiles{}
		pick := func() nacre.SnapshotID {
			ids := slices.Sorted(maps.Keys(exists))
			if len(ids) == 0 {
				return nacre.NewSnapshotID()
			}
			return rapid.SampledFrom(ids).Draw(rt, "which")
		}
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			if rapid.IntRange(0, 3).Draw(rt, "kill") == 0 {
				a.fuse.light(rapid.IntRange(1, 40).Draw(rt, "fuse"))
			}
			switch rapid.SampledFrom([]string{"keep", "work", "drop", "open", "delete", "restart"}).Draw(rt, "do") {
			case "keep":
				f := files(rapid.Uint64Range(0, 3).Draw(rt, "seed"), 100)
				m := f.Manifest(nacre.NewSnapshotID())
				if _, err := f.Keep(t.Context(), a, m); err == nil {
					exists[m.ID] = f
				} else if !a.fuse.burnt() {
					rt.Fatal(err)
				} else if a = a.restart(); a.open(m.ID, f) == nil {
					exists[m.ID] = f // it was further than it could say
				}
			case "work":
				_ = a.Work(t.Context())
			case "drop":
				_ = a.DropAll()
			case "open":
				id := pick()
				if f, ok := exists[id]; ok {
					if err := a.open(id, f); err != nil && !a.fuse.burnt() {
						rt.Fatal(err)
					}
				}
			case "delete":
				id := pick()
				if a.Delete(t.Context(), id) == nil {
					delete(exists, id)
				}
			case "restart":
				a = a.restart()
			}
			if a.fuse.burnt() {
				a = a.restart()
			}
		}
		a.fuse.light(0)
		for id, f := range exists {
			if err := a.open(id, f); err != nil {
				rt.Fatalf("%s: %v", id, err)
			}
		}
		if list, _ := a.Manifests(t.Context()); len(list) != len(exists) {
			rt.Fatalf("%d exist, %d are listed", len(exists), len(list))
		}
		a.Close()
	})
}

// TestRunIsQuiet: in the background nothing is cut that is fresh, and all is that is
// not.
func TestRunIsQuiet(t *testing.T) {
	var now atomic.Pointer[time.Time]
	start := time.Now()
	now.Store(&start)
	a := newArtifacts(t, func(o *image.ArtifactOptions) {
		o.Settle, o.Clock = time.Hour, func() time.Time { return *now.Load() }
	})
	f := files(9, 100)
	old, fresh := f.Manifest(nacre.NewSnapshotID()), f.Manifest(nacre.NewSnapshotID())
	old.CreatedAt, fresh.CreatedAt = start.Add(-2*time.Hour), start
	for _, m := range []nacre.SnapshotManifest{old, fresh} {
		_, err := f.Keep(t.Context(), a, m)
		a.must(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.must(a.Run(ctx)) })
	defer wg.Wait()
	defer cancel()
	indexed := func(id nacre.SnapshotID) bool {
		_, err := os.Stat(filepath.Join(a.dir, "index", string(id)+".json"))
		return err == nil
	}
	wait := func(id nacre.SnapshotID) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !indexed(id); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it is not cut")
			}
		}
	}
	wait(old.ID)
	if indexed(fresh.ID) {
		t.Error("a fresh snapshot was cut")
	}
	later := start.Add(2 * time.Hour)
	now.Store(&later)
	wait(fresh.ID)
}

func BenchmarkCut(b *testing.B) {
	f := files(11, 16384) // 64 MiB
	b.SetBytes(64 << 20)
	for b.Loop() {
		b.StopTimer()
		a := openArtifacts(b, b.TempDir(), &fuseBlobs{BlobStore: openBlobs(b, b.TempDir())}, nil)
		a.keep(f)
		b.StartTimer()
		a.must(a.Work(b.Context()))
	}
}

func BenchmarkPutTogether(b *testing.B) {
	f := files(11, 16384)
	a := openArtifacts(b, b.TempDir(), &fuseBlobs{BlobStore: openBlobs(b, b.TempDir())}, nil)
	id := a.keep(f)
	a.must(a.Work(b.Context()))
	b.SetBytes(64 << 20)
	for b.Loop() {
		b.StopTimer()
		a.must(a.DropAll())
		b.StartTimer()
		_, _, release, err := a.Open(b.Context(), id)
		a.must(err)
		release()
	}
}
