package firecracker

// Usable tells whether New would take the programs that c names. It runs them, to ask
// for their versions, and changes nothing.
func (c Config) Usable() error { return (&Runtime{cfg: c}).checkPrograms() }
