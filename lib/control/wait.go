package control

import (
	"net/http"
	"sync"
)

// waitHandler counts the handlers that run. http.Server's Close does not wait for
// them, and who starts a goroutine waits for it.
type waitHandler struct {
	next http.Handler

	mu     sync.Mutex // orders begin and wait: no Add after Wait has begun
	closed bool
	wg     sync.WaitGroup
}

func (h *waitHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.begin() {
		return
	}
	defer h.wg.Done()
	h.next.ServeHTTP(w, r)
}

func (h *waitHandler) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	return true
}

// wait refuses further requests and returns when the running ones have ended.
func (h *waitHandler) wait() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.wg.Wait()
}
