package e2e

import "time"

// patience is how long is waited for what is not promised to be done in a time, and only
// must not hang.
const patience = time.Minute
