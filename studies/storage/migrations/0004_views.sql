-- What the views of a study need to know beside its trials: when a step was reported, who ran a trial long
-- after that worker has gone, and whom was told what.

-- Of the steps that are there nobody knows any more; the default is set apart so that they stay null.
alter table studyhall.metrics add at timestamptz;
alter table studyhall.metrics alter at set default now();

alter table studyhall.workers
    add ended_at timestamptz,                               -- when it said goodbye, or was found dead
    add died_of  text;                                      -- null where it ended in order

-- Where a study's [notify] sends to. The URL may hold a secret, and the spec is shown in many places.
create table studyhall.addresses (
    study_id integer primary key references studies on delete cascade,
    url      text not null
);

-- It, for those who may read the table; null for the others, to whom the study is no secret.
create function studyhall.address(p_study_id integer) returns text
language sql stable security definer set search_path = pg_catalog as $$
    select url from studyhall.addresses
    where study_id = p_study_id and has_table_privilege(session_user, 'studyhall.addresses', 'select')
$$;

-- What is told to an address, each event once, by whichever process takes it first. One that dies before it has
-- told leaves it to the next.
create table studyhall.notices (
    study_id   integer not null references studies on delete cascade,
    address    text not null,                               -- a hash of its URL
    event      text not null,                               -- such as 'best 17'
    taken_by   text not null,
    taken_till timestamptz not null,
    told_at    timestamptz,
    primary key (study_id, address, event)
);
