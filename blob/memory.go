package blob

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
)

// Memory is a BlobStore that ends with the process.
type Memory struct {
	mu      sync.RWMutex
	objects map[string]object
}

// object's content is never written to again.
type object struct {
	content []byte
	at      time.Time
}

var _ nacre.BlobStore = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{objects: map[string]object{}} }

// Put implements nacre.BlobStore.
func (m *Memory) Put(ctx context.Context, key string, r io.Reader) (nacre.Blob, error) {
	if err := checkKey(key); err != nil {
		return nacre.Blob{}, err
	}
	content, err := io.ReadAll(whileAlive{ctx.Err, r})
	if err != nil {
		return nacre.Blob{}, err
	}
	o := object{content, time.Now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = o
	return o.blob(key), nil
}

// Get implements nacre.BlobStore.
func (m *Memory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	o, err := m.object(ctx, key)
	if err != nil {
		return nil, err
	}
	n, err := section(int64(len(o.content)), offset, length)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(whileAlive{ctx.Err, bytes.NewReader(o.content[offset : offset+n])}), nil
}

// Stat implements nacre.BlobStore.
func (m *Memory) Stat(ctx context.Context, key string) (nacre.Blob, error) {
	o, err := m.object(ctx, key)
	if err != nil {
		return nacre.Blob{}, err
	}
	return o.blob(key), nil
}

// List implements nacre.BlobStore. It lists what there was when it began.
func (m *Memory) List(ctx context.Context, prefix string, fn func(nacre.Blob) error) error {
	m.mu.RLock()
	objects := maps.Clone(m.objects)
	m.mu.RUnlock()
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if err := fn(objects[key].blob(key)); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements nacre.BlobStore.
func (m *Memory) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	return nil
}

func (m *Memory) object(ctx context.Context, key string) (object, error) {
	if err := checkKey(key); err != nil {
		return object{}, err
	}
	if err := ctx.Err(); err != nil {
		return object{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[key]
	if !ok {
		return object{}, notFound(key)
	}
	return o, nil
}

func (o object) blob(key string) nacre.Blob {
	return nacre.Blob{Key: key, Size: int64(len(o.content)), ModTime: o.at}
}
