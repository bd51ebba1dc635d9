package faults

import (
	"fmt"
	"strings"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// proxy stands between replicas and a server, and can be slow.
type proxy struct {
	*toxiproxy.Proxy

	trial *trial
	// url is what replicas connect to.
	url string
}

// proxyPostgres stands before the row's Postgres.
func (s *site) proxyPostgres() *proxy {
	s.Helper()
	p := s.newProxy("postgres", s.postgres.Port())
	p.url = s.databaseAt(p.Listen)
	return p
}

// newProxy stands before a port of loopback.
func (s *site) newProxy(name string, port int) *proxy {
	s.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{Proxy: toxiproxy.NewProxy(server, name, "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d", port)), trial: s.trial}
	if err := p.Start(); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(p.Stop)
	return p
}

// delay has every answer come later by so much; 0 ends that.
func (p *proxy) delay(by time.Duration) {
	p.trial.Helper()
	const name = "late"
	if p.Toxics.GetToxic(name) != nil {
		if err := p.Toxics.RemoveToxic(p.trial.Context(), name); err != nil {
			p.trial.Fatal(err)
		}
	}
	if by == 0 {
		return
	}
	_, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name":%q,"type":"latency","stream":"downstream","attributes":{"latency":%d}}`, name, by.Milliseconds())))
	if err != nil {
		p.trial.Fatal(err)
	}
}
