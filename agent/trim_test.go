package agent

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
)

// TestTrimsWhatIsWorthIt: memory is given back after requests that took some, the first
// ones as well, and not each time that somebody asks whether the guest is well.
func TestTrimsWhatIsWorthIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{cfg: Config{TrimAfter: time.Second}, handler: http.NotFoundHandler()} // the requests' counter alone
		trims := func() uint32 {
			t.Helper()
			a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/health", nil))
			time.Sleep(2 * time.Second)
			synctest.Wait()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.NumForcedGC
		}
		runtime.KeepAlive(make([]byte, 2*trimWorth))
		before := trims() - 1
		for range 20 {
			if n := trims() - before; n != 1 {
				t.Fatalf("trimmed %d times", n)
			}
		}
		runtime.KeepAlive(make([]byte, 2*trimWorth))
		if n := trims() - before; n != 2 {
			t.Errorf("trimmed %d times after there was something to give back", n)
		}
	})
}
