package scenarios

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/integration/farm"
	"saru/lib/control"
)

const (
	// killRate is the load, in connections a second on each of two directors: three syncds that start again and again share two
	// emulated CPUs with it.
	killRate = 100
	// killAudit is --audit_interval: what a killed daemon had told one peer only comes to the other one by an audit, and ten seconds
	// a round would be waiting. The kernel is audited as often.
	killAudit = "3s"
	// killStart is how long after the start of a daemon it, or its teacher, is killed at the latest.
	killStart = 1500 * time.Millisecond
	// killOpen is after how many rounds those connections are ended that were left open: tables stay small in a long run.
	killOpen = 8
)

// Words of the loss that is there all the time, so that there is always something to repair, and of that in the rounds for repair.
const (
	someLoss  = "loss 3% delay 5ms 2ms reorder 10% duplicate 1% limit 100000"
	heavyLoss = "loss 20% delay 5ms 2ms reorder 10% duplicate 1% limit 100000"
)

// killer kills daemons of a farm under load, and keeps the books.
type killer struct {
	others []int // sync threads of other scenarios
	*testing.T
	farm     *farm.Farm
	churn    *churn
	random   *rand.Rand
	daemons  []*daemon
	rotation rotation
	books    books

	kills      map[string]int // by phase
	unfinished int            // of the kills while somebody joined, those before the join was over
	converged  []time.Duration
}

// rotation is how far keys and --auth have come.
type rotation struct {
	stage   int
	old     key
	new     key
	serials int
}

type key struct {
	id   int
	text string
}

// stages of a rotation: from unsigned messages to signed ones, to the next key, and back, so that any two that follow each other
// understand each other. After the last one comes the second, and the new key is the old one then.
var stages = []struct {
	auth string
	keys func(r *rotation) []key // the first one signs
}{
	{"receive-only", func(r *rotation) []key { return []key{r.old} }},
	{"permissive", func(r *rotation) []key { return []key{r.old} }},
	{"enforce", func(r *rotation) []key { return []key{r.old} }},
	{"enforce", func(r *rotation) []key { return []key{r.old, r.new} }},
	{"enforce", func(r *rotation) []key { return []key{r.new, r.old} }},
	{"enforce", func(r *rotation) []key { return []key{r.new} }},
	{"permissive", func(r *rotation) []key { return []key{r.new} }},
	{"receive-only", func(r *rotation) []key { return []key{r.new} }},
}

func (r *rotation) auth() string { return stages[r.stage].auth }

// signer is the id of the key that signs.
func (r *rotation) signer() int { return stages[r.stage].keys(r)[0].id }

func (r *rotation) String() string {
	s := r.auth() + " with keys"
	for _, k := range stages[r.stage].keys(r) {
		s += " " + strconv.Itoa(k.id)
	}
	return s
}

// newKey makes a key with another id than the one before.
func (k *killer) newKey() key {
	k.Helper()
	id := 1 + k.rotation.serials%2
	k.rotation.serials++
	text, err := k.farm.Directors[0].Run("saructl", "genkey", "--id", strconv.Itoa(id))
	must(k.T, err)
	return key{id, text}
}

// configure writes a director's files as the rotation wants them.
func (k *killer) configure(d *farm.Node) {
	k.Helper()
	r := &k.rotation
	text := ""
	for _, one := range stages[r.stage].keys(r) {
		text += one.text
	}
	must(k.T, d.WriteFile(configFile, []byte("auth "+r.auth()+"\naudit_interval "+killAudit+"\n"), 0o600))
	must(k.T, d.WriteFile(keyFile, []byte(text), 0o600))
}

// upTo returns a random time.
func (k *killer) upTo(limit time.Duration) time.Duration {
	return time.Duration(k.random.Int64N(int64(limit)))
}

// kill ends a director's daemon by SIGKILL.
func (k *killer) kill(i int, phase string) {
	k.Helper()
	k.sound(i)
	k.daemons[i].kill(k.T)
	k.kills[phase]++
}

// launch starts a director's daemon with the files that are there.
func (k *killer) launch(i int) {
	k.Helper()
	k.daemons[i] = launchSyncd(k.T, k.farm.Directors[i], "")
}

// sound fails if a daemon has ended by itself, or has complained.
func (k *killer) sound(i int) {
	k.Helper()
	s := k.daemons[i]
	select {
	case <-s.Done():
		k.Fatalf("syncd on %s ended by itself: %v\n%s", s.node.Name, s.Wait(), s.Output())
	default:
	}
	for line := range strings.Lines(s.Output()) {
		if strings.Contains(line, " error ") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			k.Errorf("syncd on %s says: %s", s.node.Name, line)
		}
	}
}

// duringJoin kills a daemon, starts it, and kills it or its teacher at some time after the start.
func (k *killer) duringJoin() string {
	k.Helper()
	who, away, wait, other := k.random.IntN(3), k.upTo(300*time.Millisecond), k.upTo(killStart), k.random.IntN(2) == 0
	bystander := (who + 1 + k.random.IntN(2)) % 3
	k.kill(who, "join")
	time.Sleep(away)
	k.launch(who)
	time.Sleep(wait)
	joined := strings.Contains(k.daemons[who].Output(), "info synced")
	if !joined {
		k.unfinished++
	}
	victim, phase := who, "join_newcomer"
	if other {
		phase, victim = "join_teacher", bystander
		if st, err := k.daemons[who].tryAsk(k.Context()); err == nil {
			if i := slices.IndexFunc(k.daemons, func(s *daemon) bool { return s.node.Name == st.Join.Teacher }); i >= 0 {
				victim = i
			}
		}
	}
	k.kill(victim, phase)
	k.launch(victim)
	return fmt.Sprintf("%s is killed and started %v later; %v after that %s is killed (%s; joined: %v)", k.farm.Directors[who].Name, away.Round(time.Millisecond),
		wait.Round(time.Millisecond), k.farm.Directors[victim].Name, phase, joined)
}

// duringRepair kills a daemon while much is lost.
func (k *killer) duringRepair() string {
	k.Helper()
	who, wait, away := k.random.IntN(3), k.upTo(time.Second), k.upTo(300*time.Millisecond)
	impair(k.T, k.farm.Directors, heavyLoss)
	time.Sleep(wait)
	k.kill(who, "repair")
	time.Sleep(away)
	k.launch(who)
	impair(k.T, k.farm.Directors, someLoss)
	return fmt.Sprintf("%s is killed %v after the loss began and started %v later", k.farm.Directors[who].Name, wait.Round(time.Millisecond), away.Round(time.Millisecond))
}

// duringRotation takes the farm two steps further and kills a daemon meanwhile, which is started at once or after the steps.
func (k *killer) duringRotation() string {
	k.Helper()
	who, wait, atOnce := k.random.IntN(3), k.upTo(time.Second), k.random.IntN(2) == 0
	from, began := k.rotation.String(), time.Now()
	dead, done := false, false
	pass := func(until time.Duration) { // lets time go by, the killer's as well
		if left := wait - time.Since(began); !done && left < until {
			time.Sleep(left)
			k.kill(who, "rotation")
			dead, done = true, true
			if atOnce {
				k.launch(who)
				dead = false
			}
			return
		}
		time.Sleep(until)
	}
	for range 2 {
		r := &k.rotation
		if r.stage++; r.stage == len(stages) {
			r.stage, r.old, r.new = 1, r.new, k.newKey()
		}
		for _, i := range k.random.Perm(3) {
			k.configure(k.farm.Directors[i])
			if dead && i == who {
				continue
			}
			s := k.daemons[i]
			eventually(k.T, readyLimit, func() string { // before it says anything, it does not catch the signal
				if s.Output() == "" {
					return s.node.Name + " says nothing"
				}
				return ""
			})
			reloads := strings.Count(s.Output(), "info reloaded")
			must(k.T, s.Signal(unix.SIGHUP))
			for limit := time.Now().Add(readyLimit); strings.Count(s.Output(), "info reloaded") == reloads && (!dead || i != who) && s == k.daemons[i]; pass(20 * time.Millisecond) {
				if time.Now().After(limit) {
					k.Fatalf("no reload of %s: %s", s.node.Name, s.Output())
				}
			}
		}
		pass(200 * time.Millisecond) // some heartbeats: what is on the way is of the step before
	}
	for !done {
		pass(20 * time.Millisecond)
	}
	if dead {
		k.launch(who)
	}
	return fmt.Sprintf("from %s to %s; %s is killed %v after the beginning, started at once: %v", from, &k.rotation, k.farm.Directors[who].Name, wait.Round(time.Millisecond), atOnce)
}

// tryAsk is ask of a daemon that may be dead.
func (s *daemon) tryAsk(ctx context.Context) (st control.SyncStatus, err error) {
	path, err := s.node.Path(controlSocket)
	if err == nil {
		err = control.NewClient(path).Get(ctx, control.PathSyncStatus, &st)
	}
	return st, err
}

// firstSeed is SARU_SEED; else it is random where rounds are many, and always the same where they are few.
func firstSeed(t *testing.T) uint64 {
	t.Helper()
	v := os.Getenv("SARU_SEED")
	switch {
	case v == "" && os.Getenv("SARU_ROUNDS") != "":
		return uint64(rand.Uint32())
	case v == "":
		return 14 // joins, repairs and rotations in about equal parts
	}
	n, err := strconv.ParseUint(v, 10, 64)
	must(t, err)
	return n
}

// TestKillAnywhere: SIGKILL of syncd on any director at any time while one joins, while losses are repaired, and while keys are changed,
// under load and loss: started again, the farm converges to what the load has made, on every director, and nothing else is ever in a
// kernel or a replica. Which director, which phase and when is random; SARU_SEED=N begins with the round that said "seed N".
func TestKillAnywhere(t *testing.T) {
	f := farm.New(t, farm.Spec{Directors: 3, RealServers: 2 * killServers, SyncSegment: true})
	// The namespaces of a scenario before may live on with their threads, as long as a connection of theirs is being closed.
	k := &killer{T: t, farm: f, kills: map[string]int{}, others: slices.Concat(syncThreads(t))}
	for i, d := range f.Directors {
		must(t, d.AddServices(churnService))
		k.books.ownServers(t, f, i)
	}
	seed := firstSeed(t)
	k.rotation.old, k.rotation.new = k.newKey(), k.newKey()
	k.rotation.stage = int(seed % uint64(len(stages)))
	k.churn = newChurn(t, f.Directors[:2]...)
	for _, d := range f.Directors {
		k.configure(d)
		k.daemons = append(k.daemons, launchSyncd(t, d, ""))
	}
	for _, s := range k.daemons {
		s.waitSynced(t)
	}
	began := time.Now()
	phases := []func() string{k.duringJoin, k.duringRepair, k.duringRotation}
	names := []string{"join", "repair", "rotation"}
	total := rounds(t, 10)
	for i := range total {
		k.random = rand.New(rand.NewPCG(seed+uint64(i), 0))
		phase := k.random.IntN(len(phases))
		r := k.books.begin(t, k.churn)
		impair(t, f.Directors, someLoss)
		stop := k.churn.start(t, killRate)
		killing := time.Now()
		what := phases[phase]()
		time.Sleep(k.upTo(300 * time.Millisecond))
		stop()
		k.books.end(r, k.churn)
		t.Logf("round %d, seed %d, %s, %v: %s", i+1, seed+uint64(i), names[phase], time.Since(killing).Round(10*time.Millisecond), what)
		k.converge()
		if t.Failed() {
			t.Fatalf("round %d, seed %d, %s", i+1, seed+uint64(i), names[phase])
		}
	}
	k.resultLine(total, time.Since(began))
	allEqual(t, "after all kills", k.daemons)
}
