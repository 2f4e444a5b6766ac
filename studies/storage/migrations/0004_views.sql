-- What the views of a study need to know beside its trials: when a step was reported, who ran a trial long
-- after that worker has gone, and whom was told what.

-- Of the steps that are there nobody knows any more; the default is set apart so that they stay null.
alter table studyhall.metrics add at timestamptz;
alter table studyhall.metrics alter at set default now();

alter table studyhall.workers
    add ended_at timestamptz,                               -- when it said goodbye, or was found dead
    add died_of  text;                                      -- null where it ended in order

-- What was told to the address of a study's [notify], each event once, by whichever process takes it first. One
-- that dies before it has told leaves it to the next.
create table studyhall.notices (
    study_id   integer not null references studies on delete cascade,
    event      text not null,                               -- such as 'best 17'
    told       boolean not null default false,
    taken_till timestamptz not null,
    primary key (study_id, event)
);
