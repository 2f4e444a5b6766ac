-- Leases with epochs, budgets that are counted once, several studies to a worker, checkpoints, and requests
-- that may be sent twice.

alter table studyhall.budgets
    add uid       uuid not null default gen_random_uuid(),  -- the study's name outside of this database
    add paused    boolean not null default false,           -- no trial runs for now
    -- All trials up to this one are finished, which nothing can undo, and counted in what follows. So a claim
    -- looks at the newest trials alone, however many there are. See studyhall.tally.
    add settled   integer not null default 0,
    add finished  integer not null default 0,
    add failed    integer not null default 0,
    add began     timestamp,
    add best      double precision;

alter table studyhall.workers add study_ids integer[];      -- the studies that it serves
update studyhall.workers set study_ids = array[study_id];
-- What a worker runs, and how far that is, stands in its lease.
alter table studyhall.workers alter study_ids set not null, drop study_id, drop trial_id, drop step;

-- The right to write to a trial. A trial that has none, or whose lease nobody holds, belongs to a stock
-- Optuna worker if it runs.
alter table studyhall.leases
    add held      boolean not null default true,
    add claim     uuid unique,                              -- the claim that gave it, see studyhall.take
    add cancelled boolean not null default false,           -- a person wants it to end
    add revision  integer not null default 1,               -- grows with each change of the trial
    add step      integer,                                  -- the last one that its holder reported
    add reached   integer,                                  -- the last one reported when a worker last died
    add seconds   double precision not null default 30;     -- how long it lasts after a sign of life
alter table studyhall.leases alter seconds drop default;
comment on column studyhall.leases.lost is 'how many workers died on it since it last got a step further';
create index on studyhall.leases (worker_id) where held;
update studyhall.leases l set held = t.state = 'RUNNING' from trials t where t.trial_id = l.trial_id;

-- The newest two checkpoints of each trial that is not finished. The bytes are here or, under the name, in
-- the store that the spec names.
create table studyhall.checkpoints (
    trial_id integer not null references trials on delete cascade,
    epoch    integer not null,                              -- of the lease under which it was saved
    sequence integer not null,                              -- counts those of a lease
    name     text not null,
    step     integer not null,
    sha256   bytea not null,
    data     bytea,
    saved_at timestamptz not null default now(),
    primary key (trial_id, epoch, sequence)
);
alter table studyhall.checkpoints alter data set storage external;  -- weights hardly compress

-- What was asked for and done, where doing it again would do it twice: a client whose connection broke does
-- not know whether its statement was committed, and sends it again under the same token.
create table studyhall.requests (
    token  uuid primary key,
    answer integer not null,
    at     timestamptz not null default now()
);
create index on studyhall.requests (at);

drop function studyhall.claim, studyhall.renew, studyhall.requeue, studyhall.ended;
