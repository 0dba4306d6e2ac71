package sqlstore

import "sync"

// maxLookups bounds what is remembered of one kind.
const maxLookups = 4096

// lookups remembers rows that many requests ask for and that hardly ever change. Only
// rows that were found are remembered: strangers cannot fill the memory.
type lookups[K comparable, V any] struct {
	mu   sync.Mutex
	age  uint64 // of what is remembered: it counts the changes
	rows map[K]V
}

// get returns a row, or how old an answer of the database is that is asked for now.
func (l *lookups[K, V]) get(k K) (v V, age uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok = l.rows[k]
	return v, l.age, ok
}

// put remembers a row, unless something has changed since get returned the age.
func (l *lookups[K, V]) put(k K, v V, age uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if age != l.age {
		return
	}
	if len(l.rows) >= maxLookups {
		clear(l.rows)
	}
	if l.rows == nil {
		l.rows = map[K]V{}
	}
	l.rows[k] = v
}

// forget is called after every commit of a change, and before its caller learns of it.
func (l *lookups[K, V]) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.age++
	clear(l.rows)
}

// changesLookups says that the transaction changes what is remembered.
func (c conn) changesLookups() {
	if c.stale != nil {
		*c.stale = true
	}
}

func (db *DB) forgetLookups() {
	db.keys.forget()
	db.templates.forget()
}
