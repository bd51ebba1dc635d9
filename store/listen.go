package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/lib/pq"
)

// listen wakes the follower at each notification until ctx ends, and whenever LISTEN was
// connected anew: what was missed meanwhile is read by revision.
func (s *Store) listen(ctx context.Context) {
	listener := pq.NewDialListener(deadlineDialer{listenReadDeadline, &s.end}, s.url.dsn(false), reconnectMin, reconnectMax, nil)
	pinging := make(chan struct{}, 1)
	defer func() {
		// Close waits for a ping that is under way, and that for its answer behind
		// notifications: someone must take them. The channel ends with the listener.
		taken := make(chan struct{})
		go func() {
			defer close(taken)
			for range listener.NotificationChannel() {
			}
		}()
		_ = listener.Close()
		<-taken
		pinging <- struct{}{} // waits for the last ping
	}()
	// Listen waits for the first connection, which may be long in coming. Its error
	// is a closed listener or a refusal, and polling goes on in either case.
	listening := make(chan error, 1)
	go func() { listening <- listener.Listen(notifyChannel) }()

	ping := time.NewTicker(listenPing)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-listening:
			if err != nil {
				s.log.Warn("cannot listen for changes; polling alone", slog.Any("error", translate("listen", err)))
			}
			listening = nil
		case <-ping.C:
			// A ping on a wedged backend blocks until the read deadline: not here.
			select {
			case pinging <- struct{}{}:
				go func() { _ = listener.Ping(); <-pinging }()
			default:
			}
		case <-listener.NotificationChannel():
			s.wakeUp() // also for nil, which means reconnected
		}
	}
}
