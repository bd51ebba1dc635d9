package faults

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/supportstation/keystile/authz/policy"
	"github.com/supportstation/keystile/authz/policy/bundle"
)

// publisher is a bundle server, and who signs what it publishes.
type publisher struct {
	s         *site
	signer    *bundle.Signer
	env       map[string]string
	published atomic.Pointer[publication]
	n         int
}

type publication struct {
	tag     string
	archive []byte
}

func (s *site) newPublisher() *publisher {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		s.Fatal(err)
	}
	p := &publisher{s: s}
	if p.signer, err = bundle.NewSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), "security", ""); err != nil {
		s.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := p.published.Load()
		w.Header().Set("ETag", now.tag)
		if r.Header.Get("If-None-Match") == now.tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(now.archive)
	}))
	s.Cleanup(server.Close)
	p.env = map[string]string{
		"KEYSTILE_POLICY_BUNDLE_URL": server.URL + "/bundle.tar.gz",
		"KEYSTILE_POLICY_BUNDLE_KEY": "security:" + string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		"KEYSTILE_STATE_DIR":         s.TempDir(),
	}
	return p
}

// sign is the shipped policy with some files in place of others, and its revision. What no
// reader would take cannot be signed.
func (p *publisher) sign(version int64, files policyFiles) (archive []byte, revision string, err error) {
	p.s.Helper()
	p.n++
	source, err := policy.SourceOf(p.s.activationPolicy(p.s.policyDir(fmt.Sprint("published ", p.n), files)))
	if err != nil {
		return nil, "", err
	}
	archive, err = bundle.Contents{Source: source, Version: version}.Pack(p.signer)
	return archive, source.Revision(), err
}

// publish has the server send a good policy, and returns its revision.
func (p *publisher) publish(version int64, files policyFiles) string {
	p.s.Helper()
	archive, revision, err := p.sign(version, files)
	if err != nil {
		p.s.Fatal(err)
	}
	p.send(archive)
	return revision
}

func (p *publisher) send(archive []byte) {
	p.n++
	p.published.Store(&publication{fmt.Sprintf(`"%d"`, p.n), archive})
}

// pushByBundle publishes bad policies to replicas; each must be refused on all of them, and
// said on the ops listener. Then a good one must decide on all.
func (s *site) pushByBundle(p *publisher, replicas []*replica, all []badPolicy) (refused, pushed int) {
	s.Helper()
	for _, bad := range all {
		archive, _, err := p.sign(2, bad.files)
		if err != nil {
			continue
		}
		pushed++
		p.send(archive)
		said, says := "", regexp.MustCompile(bad.says)
		everywhere := within(patience, func() bool {
			for _, r := range replicas {
				if said = s.refusal(r); !says.MatchString(said) {
					return false
				}
			}
			return true
		})
		if everywhere {
			refused++
		} else {
			s.exact(false, "%s, published: the ops listener says %.600q", bad.name, said)
		}
		p.publish(1, nil)
		s.eventually("what is published is good again", func() bool {
			for _, r := range replicas {
				if s.refusal(r) != "" {
					return false
				}
			}
			return true
		})
	}
	good, began := p.publish(2, goodEdit()), time.Now()
	s.exact(within(patience, func() bool {
		pause(10 * glance) // who asks all the time takes the processor from those who try the policy
		return strings.Count(s.revisions(replicas), good) == len(replicas)
	}),
		"a good one, published, decides on all of %d", len(replicas))
	took := time.Since(began)
	s.timed(took <= 2*time.Second, "after %.2f s (≤ 2 s)", took.Seconds())
	return refused, pushed
}
