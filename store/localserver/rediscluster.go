package localserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	clusterMasters = 3
	clusterSlots   = 16384
)

// RedisCluster is a running Redis Cluster of three masters without replicas, which
// share the slots. Safe for concurrent use.
type RedisCluster struct {
	nodes    []*Redis
	password string
}

// StartRedisCluster starts three servers in directories of Dir, as StartRedis does,
// joins them, and returns when each of them serves: one or two seconds. It needs
// Redis 7 or newer, or Valkey. The Port of the options must be 0.
func StartRedisCluster(ctx context.Context, o RedisOptions) (_ *RedisCluster, err error) {
	if o.Port != 0 {
		return nil, errors.New("a Redis Cluster takes free ports: leave Port 0")
	}
	if o.Password == "" {
		o.Password = rand.Text()
	}
	c := &RedisCluster{password: o.Password}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop(ctx))
		}
	}()
	for i := range clusterMasters {
		node := o
		node.Dir = filepath.Join(o.Dir, "node"+strconv.Itoa(i))
		// A membership of an earlier start must not be taken up: file and ports are new.
		membership := "nodes-" + rand.Text() + ".conf"
		var bus int
		r, err := startRedis(ctx, node, func(int) ([]string, error) {
			var err error
			bus, err = freePort(ctx, "Redis", 0)
			return []string{
				"cluster-enabled yes", "cluster-config-file " + membership, "cluster-port " + strconv.Itoa(bus),
				"cluster-node-timeout 2000", "cluster-announce-ip " + loopback,
			}, err
		})
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, r)
		if err := c.join(ctx, i, bus); err != nil {
			return nil, err
		}
	}
	return c, c.awaitReady(ctx)
}

// join gives node i its share of the slots and brings it and the first together.
// Different epochs keep them from settling that among themselves first.
func (c *RedisCluster) join(ctx context.Context, i, bus int) error {
	from, to := i*clusterSlots/clusterMasters, (i+1)*clusterSlots/clusterMasters-1
	node := c.nodes[i]
	if _, err := node.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
		return fmt.Errorf("set up a Redis Cluster: %w", err)
	}
	if _, err := node.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(from), strconv.Itoa(to)); err != nil {
		return fmt.Errorf("set up a Redis Cluster: %w", err)
	}
	if i == 0 {
		return nil
	}
	if _, err := c.nodes[0].Do(ctx, "CLUSTER", "MEET", loopback, strconv.Itoa(node.port), strconv.Itoa(bus)); err != nil {
		return fmt.Errorf("set up a Redis Cluster: %w", err)
	}
	return nil
}

// awaitReady waits until every node knows the others and that all slots are served.
func (c *RedisCluster) awaitReady(ctx context.Context) error {
	for _, node := range c.nodes {
		err := node.process.awaitReady(ctx, func(ctx context.Context) (bool, error) {
			info, err := node.Do(ctx, "CLUSTER", "INFO")
			if err != nil {
				return false, err
			}
			return strings.Contains(info, "cluster_state:ok") &&
				strings.Contains(info, "cluster_slots_ok:"+strconv.Itoa(clusterSlots)) &&
				strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(clusterMasters)), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// URL returns the URL for go-redis' ParseClusterURL: the first node, the others as
// addr= parameters. It holds the password.
func (c *RedisCluster) URL() string {
	q := url.Values{}
	for _, node := range c.nodes[1:] {
		q.Add("addr", address(node.port))
	}
	u := url.URL{
		Scheme: "redis", User: url.UserPassword("", c.password), Host: address(c.nodes[0].port), RawQuery: q.Encode(),
	}
	return u.String()
}

// Nodes returns the servers. The slice belongs to the cluster.
func (c *RedisCluster) Nodes() []*Redis { return c.nodes }

// Stop stops every server.
func (c *RedisCluster) Stop(ctx context.Context) error {
	var errs []error
	for _, node := range c.nodes {
		errs = append(errs, node.Stop(ctx))
	}
	return errors.Join(errs...)
}

// String names the cluster without its password.
func (c *RedisCluster) String() string { return fmt.Sprintf("Redis Cluster at %v", c.nodes) }

// GoString is String, so that %#v shows no password either.
func (c *RedisCluster) GoString() string { return c.String() }
