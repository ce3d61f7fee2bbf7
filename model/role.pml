/*
 * The role protocol of one resource: who may write, and what becomes of the log.  Checked with spin; see README.md and run.sh.
 *
 * Two worlds share the log and the steps:
 *
 *   default  ANY world, for safety.  What a node believes about others - their facts, the designated primary, whether they are alive - is
 *            *arbitrary* in every decision: any node may be designated, and facts may show any position that ever existed.  This covers
 *            stale, reordered, lost and duplicated metadata, every marsadm command that only writes a wish (primary, secondary, the wish
 *            taken back) and every clock.  What holds here holds because of the log alone.
 *   META     the metadata as they are: the wish with its Lamport stamp, last writer wins; a copy of every member's facts at every member;
 *            the commands; package resource's Decide as it is coded.  For liveness, and for what a node must not do *knowingly*.
 *
 * Sizes:   N nodes, R records of log in all, FORCES and RESETS (invalidate), in META also CMDS (commands), CRASHES, HEALS.
 * Broken:  -DBUG_x builds one bug in; each must be found (run.sh bugs).
 *
 * A log is a position in one tree of records.  Why that is sound: a record carries the chain value of everything before it (history.Path,
 * translog), so two nodes that agree at a position agree on everything before it, and "is contained in", "fork" and "tail" of
 * history.Compare are ancestor relations in this tree.  LSN = depth.  A record that a power cut took stays in the tree: others may have heard
 * of it.  Replay, the disk and the device are left out: they never decide who may write (a device in use only delays a step, and every
 * step here can be delayed for ever).
 */

#ifndef N
#define N 2
#endif
#ifndef R
#define R 8	/* at most 15: a set of records is a short */
#endif
#ifndef FORCES
#define FORCES 0
#endif
#ifndef RESETS
#define RESETS 0
#endif
#ifndef HEALS
#define HEALS 0
#endif
#ifndef CMDS
#define CMDS 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef RESERVE
#define RESERVE 0	/* records that writes leave for the changes of roles */
#endif

#define NONE	7	/* no node, no record's worth of one */
#define START	1	/* translog.KindTimelineStart */
#define DATA	2	/* a write */
#define END	3	/* translog.KindTimelineEnd, names the successor */
#define ALL	32767

/* ---- the tree of records; record 0 is the start of the first timeline, opened by node 0 (create-resource) ---- */
byte  top = 1;		/* records made so far */
short anc[R];		/* the record and all before it */
byte  lsn[R];		/* how many these are */
byte  hold[R];		/* history.Path.Holder of a log that ends here */
short datas, ends;	/* which records are what */
short forced;		/* history.Timeline.Forced */

/* ---- the replicas: the log, and what must be remembered about it ---- */
byte end[N];		/* last record in the log; translog.Log.End */
byte dur[N];		/* last record that is on stable storage; translog.Log.Durable */
bool wr[N];		/* volume.Status.Writable: an open timeline with writers */
bool insync[N];		/* being filled after invalidate; volume.SyncState */
short former[N];	/* resource.Former: records that a log went on from which was thrown away here */

/* ---- what the checks need to know; no step depends on it ---- */
byte forces, resets, heals;	/* how often an operator threw something away */
short stable = 1;	/* records that were durable somewhere at some time */
short acked;		/* data that was durable on a primary: flushed, so promised for ever */

byte i, x, rec;		/* scratch; 0 between steps */

#define BIT(r)		(1 << (r))
#define TAIL(a, b)	(anc[a] & ~anc[b])	/* history.Relation: what a has and b has not */
#define IN(a, b)	(TAIL(a, b) == 0)
#define FORKED(a, b)	(TAIL(a, b) != 0 && TAIL(b, a) != 0)	/* resource.forked */
#define ENDED(r)	((ends & BIT(r)) != 0)	/* Path.Successor is set */

/* resource.Former.Voids: a log that was thrown away here went on from where this one ends: a token may have been used already, by records that are
   gone.  It counts again when the log is as long as it was. */
#ifdef BUG_FORGET
#define VOID(n)	false
#else
#define VOID(n)	((former[n] & BIT(end[n])) != 0)
#endif

/* The token is here, and may be used. */
#define HOLDS(n)	(!insync[n] && hold[end[n]] == n && !VOID(n))

/* ---- log ---- */

inline grow(n, kind, holder)
{
	anc[top] = anc[end[n]] | BIT(top);
	lsn[top] = lsn[end[n]] + 1;
	hold[top] = holder;
	if
	:: kind == START
	:: kind == DATA -> datas = datas | BIT(top)
	:: kind == END -> ends = ends | BIT(top)
	fi;
	end[n] = top;
	top++
}

/* translog.Log.SyncTo. */
inline sync(n)
{
	dur[n] = end[n];
	stable = stable | anc[end[n]];
	if
	:: wr[n] -> acked = acked | (anc[end[n]] & datas)
	:: else
	fi
}

/* volume.openTimeline: durable before anybody may write. */
inline openTimeline(n, force)
{
#ifndef BUG	/* a broken variant must be found by its consequences */
	assert(force || HOLDS(n));	/* I5: the token, as the own log says, or an operator's word */
#endif
	forced = forced | ((force) << top);
	grow(n, START, n);
	sync(n)
}

/* volume.Activate, unforced and forced. */
inline activate(n, force)
{
	printf("node %d: activate (forced %d) at lsn %d\n", n, force, lsn[end[n]]);
	openTimeline(n, force);
	wr[n] = true
}

/* volume.Deactivate: the end record is durable when the writers are out.  secondary names the node itself: it keeps the token. */
inline handOver(n, to)
{
	printf("node %d: end record for %d at lsn %d\n", n, to, lsn[end[n]]);
	grow(n, END, to);
	sync(n);
#ifndef BUG_APPEND
	wr[n] = false
#endif
}

/* volume.PassToken: a timeline without writers.  (A crash between its two records is an Activate and a crash.) */
inline passToken(n, to)
{
	printf("node %d: pass the token to %d at lsn %d\n", n, to, lsn[end[n]]);
	openTimeline(n, false);
	grow(n, END, to);
	sync(n)
}

/* volume.Suspend; also a detach. */
inline suspend(n)
{
	printf("node %d: suspend\n", n);
	wr[n] = false;
	sync(n)
}

/* A write of an application; volume.Submit, translog.onTimeline. */
inline write(n)
{
	printf("node %d: write at lsn %d\n", n, lsn[end[n]]);
#ifndef BUG_APPEND
	assert(!ENDED(end[n]));
#endif
	grow(n, DATA, hold[end[n]])
}

/* The machine stops: some un-synced records are lost.  The restart (translog.Open, settle) makes durable what is left.  A kill of the process alone
   loses nothing: the step without the loop's body. */
inline crash(n)
{
	do
	:: end[n] != dur[n] ->
		/* one record back: the youngest ancestor */
		i = end[n] - 1;
		do
		:: (anc[end[n]] & BIT(i)) == 0 -> i--
		:: else -> break
		od;
		end[n] = i; i = 0
	:: break
	od;
	wr[n] = false;
	sync(n);
	printf("node %d: crash, log ends at lsn %d\n", n, lsn[end[n]])
}

/* One record of the log travels from x to n: ship.Server sends what is durable there, to whom it contains (translog.CheckPosition); volume.Ingest
   takes it unless this is a primary. */
#ifdef BUG_SHIP
#define SHIPPED(x)	end[x]
#else
#define SHIPPED(x)	dur[x]
#endif
#define CANFETCH(n, x)	(!wr[n] && n != x && IN(end[n], SHIPPED(x)) && end[n] != SHIPPED(x))

inline fetch(n, x)
{
	i = end[n] + 1;
	do
	:: (TAIL(SHIPPED(x), end[n]) & BIT(i)) == 0 -> i++
	:: else -> break
	od;
	end[n] = i;
	i = 0;
	printf("node %d: fetch from %d up to lsn %d, holder is %d now\n", n, x, lsn[end[n]], hold[end[n]])
}

/* volume.DropTail back to the fork with the history that ends at r. */
inline dropTail(n, r)
{
	i = top - 1;
	do
	:: (anc[end[n]] & anc[r] & BIT(i)) == 0 -> i--
	:: else -> break
	od;
#ifndef BUG
	assert((TAIL(end[n], i) & datas) == 0);	/* I6 */
#endif
	end[n] = i;
	if
	:: !IN(dur[n], i) -> dur[n] = i
	:: else
	fi;
	i = 0;
	printf("node %d: drop tail back to lsn %d, holder is %d now\n", n, lsn[end[n]], hold[end[n]])
}

/* resource.forcedInVain: the first record of n's log behind r was forced off there, and there is no data.  Leaves that record in i, or 0. */
inline forcedOff(n, r)
{
	i = 0;
	if
	:: IN(r, end[n]) && (TAIL(end[n], r) & datas) == 0 && (TAIL(end[n], r) & forced) != 0 ->
		i = r + 1;
		do
		:: (TAIL(end[n], r) & BIT(i)) == 0 -> i++
		:: else -> break
		od;
		if
		:: (forced & BIT(i)) == 0 -> i = 0
		:: else
		fi
	:: else
	fi
}

/* invalidate (node.runner.reset, then join): the log is gone and begins again where the source stands, which may be long ago: at any position
   that is durable there.  What was in the log is noted first, durably (resource.Former). */
inline reset(n, src)
{
	former[n] = former[n] | (anc[end[n]] & ~BIT(end[n]));	/* resource.Former.With */
	rec = dur[src];
	do
	:: rec > 0 ->
		rec--;
		do
		:: (anc[dur[src]] & BIT(rec)) == 0 -> rec--
		:: else -> break
		od
	:: break
	od;
	end[n] = rec; dur[n] = rec;
	rec = 0;
	insync[n] = true;
	resets++;
	printf("node %d: invalidate, from %d at lsn %d, holder is %d there\n", n, src, lsn[end[n]], hold[end[n]])
}

/* volume.Heal: the log is damaged behind record rec and is cut there, because facts showed that a member has it as far as it was durable here
   (decideHeal).  See META. */
inline heal(n, r)
{
	end[n] = r; dur[n] = r;
	wr[n] = false;
	heals++;
	printf("node %d: heal, log ends at lsn %d\n", n, lsn[end[n]])
}

/* ---- what must hold after every step ---- */

#if N > 2
#define SUM(f)		(f(0) + f(1) + f(2))
#define ALLDURABLE	(anc[dur[0]] | anc[dur[1]] | anc[dur[2]])
#define ANYFORK		(FORKED(end[0], end[1]) || FORKED(end[0], end[2]) || FORKED(end[1], end[2]))
#else
#define SUM(f)		(f(0) + f(1))
#define ALLDURABLE	(anc[dur[0]] | anc[dur[1]])
#define ANYFORK		FORKED(end[0], end[1])
#endif
#define WRITES(n)	wr[n]

inline check()
{
	assert(forces > 0 || heals > 0 || SUM(HOLDS) <= 1);	/* I5: one token (a healed log is held back by AHEAD) */
	assert(forces > 0 || SUM(WRITES) <= 1);		/* I5: one primary */
	assert(forces > 0 || !ANYFORK);			/* no dmg, least of all a split brain */
	assert(resets > 0 || (forces > 0 && heals > 0) || (acked & ~ALLDURABLE) == 0)	/* I6: somebody has it */
}

#define ROOM(k)	(top + (k) <= R)

#ifndef META

/* =================================================== ANY world =================================================== */

/* package resource decides; here: whatever it could decide, whatever it believes. */
inline step(n)
{
	if
	/* resource.decideHolder: Designated == Self; node.primaryPlanned needs nothing else */
	:: !wr[n] && HOLDS(n) && ROOM(1) -> activate(n, false)
#ifdef BUG_NOTOKEN	/* the wish alone makes a primary */
	:: !wr[n] && !insync[n] && ROOM(1) -> activate(n, false)
#endif
#ifdef BUG_STALEFACTS	/* the facts of x say that its log names n; n does not wait for the log itself */
	:: !wr[n] && !insync[n] && ROOM(1) -> rec = 0;
		do
		:: rec < top && (stable & BIT(rec)) != 0 && ENDED(rec) && hold[rec] == n -> activate(n, false); break
		:: rec < top -> rec++
		:: else -> break
		od
#endif
	/* resource.decideHolder: RolePass */
	:: !wr[n] && HOLDS(n) && ROOM(2) ->
		if
		:: x = 0
		:: x = 1
#if N > 2
		:: x = 2
#endif
		fi;
		if
		:: x != n -> passToken(n, x)
		:: else
		fi
	/* resource.decidePrimary: RoleHandOver to anybody, or to itself (nobody is designated) */
	:: wr[n] && ROOM(1) -> handOver(n, 0)
	:: wr[n] && ROOM(1) -> handOver(n, 1)
#if N > 2
	:: wr[n] && ROOM(1) -> handOver(n, 2)
#endif
	/* RoleStop; detach */
	:: wr[n] -> suspend(n)
	:: wr[n] && ROOM(1) -> write(n)
	:: end[n] != dur[n] -> sync(n)
	:: wr[n] || end[n] != dur[n] -> crash(n)
	/* resource.fetchSource: anybody */
	:: CANFETCH(n, 0) -> fetch(n, 0)
	:: CANFETCH(n, 1) -> fetch(n, 1)
#if N > 2
	:: CANFETCH(n, 2) -> fetch(n, 2)
#endif
	/* resource.follow: the facts of the one to be followed show any record; the part behind the fork was durable there (Facts.Durable) */
	:: !wr[n] && !insync[n] ->
		rec = top - 1;
		do
		:: rec > 0 -> rec--
		:: break
		od;
		if
#ifdef BUG_DROPDATA
		:: FORKED(end[n], rec) && (TAIL(rec, end[n]) & stable) != 0 -> dropTail(n, rec)
#elif defined(BUG_UNSTABLE)	/* as it was coded: Facts.Path may end with records that a power cut took since */
		:: FORKED(end[n], rec) && (TAIL(end[n], rec) & datas) == 0 -> dropTail(n, rec)
#else
		:: FORKED(end[n], rec) && (TAIL(end[n], rec) & datas) == 0 && (TAIL(rec, end[n]) & stable) != 0 -> dropTail(n, rec)
#endif
		:: else
		fi;
		rec = 0
#if FORCES > 0
	/* the same, resource.forcedInVain: the facts show a primary whose log ends at rec, on a timeline of its own */
	:: !wr[n] && !insync[n] && (anc[end[n]] & forced) != 0 ->
		rec = top - 1;
		do
		:: rec > 0 -> rec--
		:: break
		od;
		forcedOff(n, rec);
		if
		:: i != 0 && !ENDED(rec) -> dropTail(n, rec)
		:: else
		fi;
		rec = 0; i = 0
	/* node.primaryForced */
	:: !wr[n] && !insync[n] && forces < FORCES && ROOM(1) -> forces++; activate(n, true)
#endif
#if RESETS > 0
	/* node.invalidate */
	:: !wr[n] && resets < RESETS ->
		if
		:: x = 0
		:: x = 1
#if N > 2
		:: x = 2
#endif
		fi;
		if
		:: x != n && !insync[x] -> reset(n, x)
		:: else
		fi;
		x = 0
	/* volume.endSyncIfReached: at any time; it is earlier here than there */
	:: insync[n] -> insync[n] = false
#endif
	:: else
	fi;
	x = 0; rec = 0
}

init {
	atomic {
		anc[0] = 1; lsn[0] = 1; wr[0] = true
	}
endless:
	do
	:: atomic { skip; step(0); d_step { check() } }
	:: atomic { skip; step(1); d_step { check() } }
#if N > 2
	:: atomic { skip; step(2); d_step { check() } }
#endif
	od
}


#else

/* =================================================== META world =================================================== */

/*
 * Per node one process.  While it is rough (calm == false) each of its steps is any one thing: hear one member's facts or wish, fetch a record,
 * sync, decide and act, write, crash, a command.  Not to be scheduled is to be dead, slow or cut off.  Process Peace ends that; from then on a
 * step is: decide and act, fetch what the plan says, sync, hear everybody - what is decided from is at least one step old then.
 */

/* The wish, key primary: value and Lamport stamp.  A Put takes any later time than what its node has seen (clocks differ); PutAfter, which
   secondary uses, the very next one.  Equal times are told apart by the node.  Wishes are on disk before anybody sees them, so a crash takes
   none back.  (That one received lately may be forgotten in a crash is covered by the ANY world.) */
byte desV[N];
byte desS[N];
#define STAMP(time, n)	((time) * 4 + (n))

/* What node n has heard of node x, at [n * N + x].  Only newer facts replace older ones (x alone writes them), but they may come late.  Facts that
   show records which are not durable yet are left to the ANY world, so one position is enough here. */
byte hEnd[N * N];
bool hWr[N * N];
bool hSync[N * N];
#define H(f, x)	f[n * N + (x)]

/* A command that waits, and what it puts back when it gives up: node.takeBack, and the same in node.secondary. */
bool cmdOn[N];
byte cmdBack[N];
byte cmdS[N];

byte until[N];		/* volume.SyncState.Until */
byte cmds, crashes;
bool calm;
bool blind;		/* somebody opened a timeline although he knew that others had gone on without him */

byte ref = NONE, src = NONE, dmg;	/* scratch; the same between steps */

/* resource.ahead: x has all of n's log and more. */
#define AHEAD1(x)	((x) != n && !H(hSync, x) && IN(end[n], H(hEnd, x)) && H(hEnd, x) != end[n])
#ifdef BUG_BLIND
#define AHEAD(n)	false
#else
#define AHEAD(n)	SUM(AHEAD1)
#endif
#define OVERTAKEN1(x)	(AHEAD1(x) && (TAIL(H(hEnd, x), end[n]) & datas) != 0)	/* resource.overtaken */
#define KNOWS1(x)	((x) != n && !H(hSync, x) && IN(end[n], H(hEnd, x)) && H(hEnd, x) != end[n])

inline hear(n, x)
{
	if
	:: n != x && end[x] == dur[x] -> H(hEnd, x) = end[x]; H(hWr, x) = wr[x]; H(hSync, x) = insync[x]
	:: else
	fi
}

inline hearWish(n, x)
{
	if
	:: desS[x] > desS[n] -> desS[n] = desS[x]; desV[n] = desV[x]
	:: else
	fi
}

/* resource.reference: whom to follow.  All are attached; in calm all are alive, before that it does not matter. */
inline reference(n)
{
	ref = NONE; i = 0;
	do
	:: i < N && (i == n || H(hSync, i)) -> i++
	:: i < N && i != n && !H(hSync, i) ->
		if
		:: i == desV[n] -> ref = i; break
		:: i != desV[n] && (ref == NONE || (H(hWr, i) && !H(hWr, ref)) || (H(hWr, i) == H(hWr, ref) && lsn[H(hEnd, i)] > lsn[H(hEnd, ref)])) ->
			ref = i; i++
		:: else -> i++
		fi
	:: else -> break
	od;
	i = 0
}

/* resource.fetchSource.  (Lacking is left out: logs are complete here.) */
inline fetchSource(n, r)
{
	src = NONE; i = 0;
	do
	:: i < N ->
		if
		:: i == n || FORKED(end[n], H(hEnd, i)) || (r != NONE && FORKED(H(hEnd, i), H(hEnd, r))) ||
#ifdef BUG_PRIMARYONLY	/* liveness: the end record of who is no longer primary is never fetched */
			!H(hWr, i)
#else
			!(lsn[H(hEnd, i)] > lsn[end[n]] || H(hWr, i) || i == desV[n])
#endif
			-> i++
		:: else ->
			if
			:: H(hWr, i) && i == desV[n] -> src = i; break
			:: !(H(hWr, i) && i == desV[n]) && (src == NONE || lsn[H(hEnd, i)] > lsn[H(hEnd, src)]) -> src = i; i++
			:: else -> i++
			fi
		fi
	:: else -> break
	od;
	i = 0
}

#define AUTHORITATIVE	(H(hWr, ref) || (ref == desV[n] && desV[n] != n))

/* resource.follow. */
inline follow(n)
{
	reference(n);
	if
	:: ref != NONE && H(hWr, ref) -> forcedOff(n, H(hEnd, ref))
	:: else
	fi;
	if
	:: ref == NONE -> fetchSource(n, NONE)
	:: ref != NONE && i != 0 -> i = 0; dropTail(n, H(hEnd, ref))
	:: ref != NONE && i == 0 && !FORKED(end[n], H(hEnd, ref)) -> fetchSource(n, ref)
	:: ref != NONE && FORKED(end[n], H(hEnd, ref)) && (TAIL(end[n], H(hEnd, ref)) & datas) == 0 &&
#ifdef BUG_STUBBORN	/* as it was coded */
		AUTHORITATIVE ->
#else
		(AUTHORITATIVE || (TAIL(H(hEnd, ref), end[n]) & datas) != 0) ->
#endif
		dropTail(n, H(hEnd, ref))
	:: else		/* split brain, or somebody is waited for */
	fi;
	ref = NONE
}

#define D	desV[n]

/* resource.Decide and node.runner.act: one round. */
inline decide(n)
{
	if
	/* decidePrimary */
	:: wr[n] && D == n ->
		if
#ifndef BUG_OVERTAKEN
		:: SUM(OVERTAKEN1) > 0 -> suspend(n)
#endif
		:: else
		fi
	:: wr[n] && D == NONE -> if :: ROOM(1) -> handOver(n, n) :: else fi
	:: wr[n] && D != n && D != NONE ->
		if
		:: FORKED(end[n], H(hEnd, D)) -> suspend(n)
		:: !FORKED(end[n], H(hEnd, D)) && !H(hSync, D) && ROOM(1) -> handOver(n, D)
		:: else
		fi
	/* decideSync; volume.endSyncIfReached */
	:: !wr[n] && insync[n] ->
		if
		:: IN(until[n], end[n]) -> insync[n] = false
		:: else -> fetchSource(n, NONE)
		fi
	/* decideHolder, then follow */
	:: !wr[n] && !insync[n] ->
		if
		:: HOLDS(n) && !AHEAD(n) && D == n ->
			if
			:: ROOM(1) -> blind = SUM(KNOWS1) > 0; activate(n, false)
			:: else
			fi
#ifndef BUG_NOPASS
		:: HOLDS(n) && !AHEAD(n) && D != n && D != NONE && !H(hSync, D) && !H(hWr, D) && IN(H(hEnd, D), end[n]) ->
			if
			:: ROOM(2) -> passToken(n, D)
			:: else
			fi
#endif
		:: else -> follow(n)
		fi
	fi
}

inline put(n, v, time)
{
	desV[n] = v; desS[n] = STAMP(time, n)
}
#define SEEN	(desS[n] / 4)

inline done(n)
{
	cmdOn[n] = false; cmdBack[n] = 0; cmdS[n] = 0
}

/* Anything that may happen at n while it is rough. */
inline rough(n)
{
	if
	:: true -> hear(n, 0)
	:: true -> hear(n, 1)
	:: true -> hearWish(n, 0)
	:: true -> hearWish(n, 1)
#if N > 2
	:: true -> hear(n, 2)
	:: true -> hearWish(n, 2)
#endif
	:: CANFETCH(n, 0) -> fetch(n, 0)
	:: CANFETCH(n, 1) -> fetch(n, 1)
#if N > 2
	:: CANFETCH(n, 2) -> fetch(n, 2)
#endif
	:: ROOM(2 + RESERVE) -> decide(n); src = NONE
	:: end[n] != dur[n] -> sync(n)
	:: wr[n] && ROOM(1 + RESERVE) -> write(n)
	/* with the process dies the command that waits in it */
	:: crashes < CRASHES -> crashes++; crash(n); done(n)
	/* resource.interrupted: a restarted primary goes on for the users of its device, whoever is designated meanwhile */
	:: crashes > 0 && !wr[n] && HOLDS(n) && !AHEAD(n) && D != n && (D == NONE || !FORKED(end[n], H(hEnd, D))) && ROOM(1 + RESERVE) ->
		blind = SUM(KNOWS1) > 0; activate(n, false)
	/* node.primaryPlanned */
	:: cmds < CMDS && !insync[n] && !cmdOn[n] && !(wr[n] && D == n) ->
		cmds++; cmdOn[n] = true; cmdBack[n] = D;
		if :: put(n, n, SEEN + 2) :: put(n, n, SEEN + 4) fi;
		cmdS[n] = desS[n]
	/* node.secondary */
	:: cmds < CMDS && !cmdOn[n] && D == n ->
		cmds++; cmdOn[n] = true; cmdBack[n] = n;
		put(n, NONE, SEEN + 1);
		cmdS[n] = desS[n]
	/* a command gives up: node.takeBack, for secondary likewise */
	:: cmdOn[n] ->
		if
		:: desS[n] == cmdS[n] && ((D == n && !wr[n] && cmdBack[n] != n) || (D == NONE && cmdBack[n] == n)) ->
			if :: put(n, cmdBack[n], SEEN + 2) :: put(n, cmdBack[n], SEEN + 4) fi
		:: else
		fi;
		done(n)
	/* or has succeeded */
	:: cmdOn[n] && wr[n] == (D == n) -> done(n)
#if FORCES > 0
	/* node.primaryForced; MayForce refuses less than is left out here */
	:: forces < FORCES && !wr[n] && !insync[n] && ROOM(1 + RESERVE) ->
		forces++; put(n, n, SEEN + 2);
		activate(n, (!HOLDS(n) || AHEAD(n) > 0))	/* resource.OpensByForce */
#endif
#if RESETS > 0
	/* node.invalidate; a sync that starts over */
	:: resets < RESETS && !wr[n] && (D != n || insync[n]) ->
		if :: x = 0 :: x = 1
#if N > 2
		:: x = 2
#endif
		fi;
		if
		:: x != n && !insync[x] -> reset(n, x); until[n] = dur[x]
		:: else
		fi;
		x = 0
#endif
#if HEALS > 0
	/* the log is found damaged (behind record dmg) when it is opened; resource.decideHeal, volume.Heal */
	:: heals < HEALS && !wr[n] && !insync[n] && end[n] == dur[n] && dur[n] != 0 ->
		dmg = dur[n] - 1;
		do
		:: (anc[dur[n]] & BIT(dmg)) == 0 -> dmg--
		:: (anc[dur[n]] & BIT(dmg)) != 0 && dmg > 0 -> dmg--
		:: (anc[dur[n]] & BIT(dmg)) != 0 -> break
		od;
		if :: x = 0 :: x = 1
#if N > 2
		:: x = 2
#endif
		fi;
		if
		:: x != n && !FORKED(dmg, H(hEnd, x)) && lsn[H(hEnd, x)] >= lsn[dur[n]] -> heal(n, dmg)
		:: else
		fi;
		x = 0; dmg = 0
#endif
	:: else
	fi
}

/* One step of a healthy node. */
inline healthy(n)
{
	decide(n);
	if
	:: src != NONE && CANFETCH(n, src) -> fetch(n, src)
	:: else
	fi;
	src = NONE;
	sync(n);
	hear(n, 0); hear(n, 1); hearWish(n, 0); hearWish(n, 1);
#if N > 2
	hear(n, 2); hearWish(n, 2);
#endif
}

#define NODE(n)	\
	do \
	:: atomic { !calm -> rough(n); d_step { check(); assert(!blind) } } \
	:: atomic { calm -> d_step { healthy(n); check(); assert(!blind) } } \
	od

proctype Node0() { endless: NODE(0) }
proctype Node1() { endless: NODE(1) }
#if N > 2
proctype Node2() { endless: NODE(2) }
#endif

/* From now on only the order of the stamps counts, and nothing that was counted; forgetting the rest makes many states one. */
#if N > 2
#define OLDER(k)	((desS[0] < desS[k]) + (desS[1] < desS[k]) + (desS[2] < desS[k]))
#else
#define OLDER(k)	((desS[0] < desS[k]) + (desS[1] < desS[k]))
#endif

proctype Peace()
{
	d_step {
		calm = true;
		cmds = 0; crashes = 0;
		done(0); done(1);
#if N > 2
		done(2);
		rec = OLDER(2);
#endif
		i = OLDER(0); x = OLDER(1);
		desS[0] = i; desS[1] = x;
#if N > 2
		desS[2] = rec;
#endif
		i = 0; x = 0; rec = 0
	}
}

/* A force has left data behind: an operator must say what to throw away.  (It is shown as a split brain when the new primary has written, too.) */
#define SPLIT2(a, b)	(FORKED(end[a], end[b]) && ((TAIL(end[a], end[b]) | TAIL(end[b], end[a])) & datas) != 0)

#if N > 2
#define SPLIT	(SPLIT2(0, 1) || SPLIT2(0, 2) || SPLIT2(1, 2))
#define SAMEWISH	(desS[0] == desS[1] && desS[1] == desS[2])
#define SAMELOG		(end[0] == end[1] && end[1] == end[2])
#else
#define SPLIT	SPLIT2(0, 1)
#define SAMEWISH	(desS[0] == desS[1])
#define SAMELOG		(end[0] == end[1])
#endif
#define WANTED		((desV[0] == NONE && SUM(WRITES) == 0) || (desV[0] != NONE && SUM(WRITES) == 1 && wr[desV[0]]))

/* I8 and the promise of primary: when all are healthy there is, for ever after, the one primary that is wished for, and everybody has its log.
   (RESERVE keeps records for what must happen then.  After a force two empty timelines may wait until somebody is designated.) */
#ifdef LIVE
ltl convergence { <> [] (SAMEWISH && WANTED && (SAMELOG || SPLIT || (forces > 0 && desV[0] == NONE))) }
#endif

init {
	atomic {
		anc[0] = 1; lsn[0] = 1; wr[0] = true;
		desS[0] = 4; desS[1] = 4;
		hWr[1 * N] = true;
#if N > 2
		desS[2] = 4; hWr[2 * N] = true;
#endif
		run Node0(); run Node1();
#if N > 2
		run Node2();
#endif
		run Peace()
	}
}

#endif
