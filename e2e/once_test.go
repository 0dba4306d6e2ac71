package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// TestRequestsLostInACrash: creates with an Idempotency-Key of both dialects are cut
// off by a kill -9 at different moments. Sent again, each is one sandbox, whether or
// not the first had made it; a third time it is the same one.
func TestRequestsLostInACrash(t *testing.T) {
	d := start(t)
	key := d.note().APIKey
	const each = 6
	paths := [2]struct{ path, body, id string }{
		{"/sandboxes", `{"templateID":"base","timeout":300}`, "sandboxID"},
		{"/api/v1/sandboxes", `{"timeout_sec":300}`, "id"},
	}
	send := func(i int) (string, error) {
		p := paths[i%2]
		a, err := d.ask(t.Context(), http.MethodPost, p.path, []byte(p.body), as("X-API-Key", key, "Content-Type", "application/json",
			"Idempotency-Key", fmt.Sprint("lost ", i)))
		if err != nil {
			return "", err
		}
		var out map[string]any
		if err := json.Unmarshal([]byte(a.Body), &out); err != nil || a.Status != http.StatusCreated {
			return "", fmt.Errorf("%s (%v)", a, err)
		}
		return out[p.id].(string), nil
	}
	before := make([]string, 2*each) // what the clients were told, "" when they were cut off
	var wg sync.WaitGroup
	sent := make(chan struct{}, len(before))
	for i := range before {
		wg.Go(func() {
			time.Sleep(time.Duration(i*10) * time.Millisecond) // so that the kill meets each at another point
			before[i], _ = send(i)
			sent <- struct{}{}
		})
	}
	for range each / 2 { // some have been told
		<-sent
	}
	d.kill9()
	wg.Wait()
	d.up()
	var after, again [2 * each]string
	for _, ids := range []*[2 * each]string{&after, &again} {
		for i := range ids {
			wg.Go(func() {
				var err error
				if ids[i], err = send(i); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	}
	lost := 0
	for i := range after {
		if before[i] == "" {
			lost++
		} else if before[i] != after[i] {
			t.Errorf("request %d was answered with %s, and later with %s", i, before[i], after[i])
		}
		if after[i] != again[i] {
			t.Errorf("request %d is %s, then %s", i, after[i], again[i])
		}
	}
	t.Logf("%d of %d requests were cut off", lost, len(after))
	var alive []struct {
		SandboxID string `json:"sandboxID"`
	}
	if err := d.call(key, http.MethodGet, "/v2/sandboxes?limit=100", nil).decode(&alive); err != nil {
		t.Fatal(err)
	}
	if len(alive) != len(after) {
		t.Errorf("%d sandboxes live, of %d requests", len(alive), len(after))
	}
}
