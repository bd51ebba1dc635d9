package faults

// rows are all that is measured. A new one gets a line here, and its function a place in
// the file of its subject.
func rows() []row {
	return []row{
		{0, "none", "cached key revoked → denied on every replica: p99 ≤ 250 ms, max 1 s", revocationUnderLoad},
		{1, "Postgres down", "known keys served for stale_max (policy sees stale after 10 s), then unavailable; unknown keys unavailable in ≤ 100 ms, never cached as unknown", postgresDown},
		{2, "Postgres stuck", "as 1; store calls in flight ≤ pool size; goroutines ≤ +200", postgresStuck},
		{3, "Postgres slow by 500 ms", "cached p99 unaffected; misses 503 at 100 ms", postgresSlow},
		{4, "old copy restored, failover to a lagging standby", "a running replica never un-learns a revocation, and applies new changes; what no running replica knew and the copy lacks is listed by doctor from the exported audit log", oldCopy},
		{5, "LISTEN connection dropped", "revoked → denied ≤ 1 s", listenDropped},
		{6, "LISTEN connection wedged", "revoked → denied ≤ 2 s", listenWedged},
		{7, "Redis down", "local: replicas together admit ≤ 1.25 × limit; first calls +60 ms, then +1 ms; exact again ≤ 2 s after its return", redisDown},
		{8, "Redis paused or slow", "p99 ≤ 100 ms; charged too much ≤ pool size", redisLate},
		{9, "READONLY, OOM, NOREPLICAS, CLUSTERDOWN", "as 7, for fresh and exhausted keys alike", redisRefuses},
		{10, "FLUSHALL, failover", "at most one extra burst a key; no error", redisForgets},
		{11, "Redis clock ± 1 h", "nobody denied longer than one window", redisClock},
		{12, "bad policy pushed", "refused; the old one serves; 0 changed decisions", badPolicyPushed},
		{13, "a bad row already stored", "only that organization is denied; the service starts", badRowStored},
		{14, "endless policy", "denied ≤ 25 ms over budget; at most one abandoned evaluation at a time; what caused it is denied unevaluated; after two the cause is held back and other organizations' p99 ≤ 2 ×; never an automatic step back", endlessPolicy},
		{15, "replica kill −9", "others 0 errors; usage lost ≤ 1 s of that replica; none twice", replicaKilled},
		{16, "replica clock ± 1 h", "revocation and limits unchanged", replicaClock},
		{17, "database disk full", "as 1; usage buffer bounded; drops counted exactly", diskFull},
		{18, "5,000 connections at once", "p99 of existing ≤ 3 ×; memory ≤ +200 MB", manyConnections},
		{19, "500 slow headers", "all closed ≤ 5 s; checks unaffected", slowHeaders},
		{20, "10 MB body", "413; ≤ 1 MB allocated", hugeBodies},
		{21, "bad JSON, UTF-8, NUL, duplicate and case-variant fields, trailing data", "400; no store call; no 5xx", spoiltBodies},
		{22, "1 M unknown keys with right checksums", "valid p99 ≤ 2 ×; memory ≤ +64 MB; ≤ 200 statements/s; ≥ 99 % of valid uncached keys resolve at the first try", unknownKeys},
		{23, "one key at 10,000/s against 100/min", "within the bound; once the burst is spent Redis ≤ 50 ops/s for it; others' p99 ≤ 2 ×", oneKeyTooMuch},
		{24, "cold start, 2,000/s over 1,000 keys", "≤ 1 query a key; 0 5xx", coldStart},
		{25, "rolling restart", "0 failed of ≥ 50,000", rollingRestart},
		{26, "1,000 clients drop after 1 ms", "store connections opened ≤ 2 × pool", droppingClients},
		{27, "audit log cannot be written", "the management change fails with it (same transaction); checks go on", auditLogBroken},
		{28, "Postgres and Redis both away", "still ready; known keys decided, local limits", bothAway},
		{29, "two interleaved changes, notifications lost", "the one that commits last with the smaller number is seen; a receipt never names it too early", interleavedChanges},
		{30, "random load, two of three replicas kill −9, Postgres away for 30 s between", "usage: sent = stored + lost; lost ≤ 1 s of a killed replica's; none twice; hours, networks and days add up to the same", usageExact},
	}
}
