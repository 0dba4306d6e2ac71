package miosa

import "github.com/nacrehq/nacre"

// Nouns are the stores behind the nouns that only this dialect has.
type Nouns struct {
	Editor Editor
	Events nacre.EventLog
}
