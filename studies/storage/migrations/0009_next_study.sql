-- What the sampler of a study knows of other studies' trials, and the changes of a study's space.

-- Evidence: COMPLETE trials of other studies, for the sampler alone. They are no trials of the study: nothing counts
-- them. They are copies, so that the same trial is drawn whatever becomes of the other study.
create table studyhall.evidence (
    study_id integer not null references studies on delete cascade,
    source   text not null,                                 -- the other study's name
    number   integer not null,                              -- of its trial
    contents text not null,                                 -- JSON of Python's kind: params, values, constraints
    primary key (study_id, source, number)
);

create table studyhall.space_changes (
    study_id integer not null references studies on delete cascade,
    version  integer not null,                              -- counts the changes of a study, from 1
    at       timestamptz not null default now(),
    who      text not null,                                 -- USER@HOST, as the client says
    change   text not null,                                 -- as it was typed
    primary key (study_id, version)
);

-- How often the space of a study has changed. Volatile: within a claim it sees what was committed while the claim waited
-- for the study's row lock.
create function studyhall.space_version(p_study_id integer) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    return (select count(*) from studyhall.space_changes where study_id = p_study_id);
end $$;

-- Whoever may write leases may write these.
do $$
declare
    grantee record;
begin
    for grantee in
        select a.grantee::regrole as role, a.privilege_type as privilege
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'studyhall.leases'::regclass and a.grantee not in (0, c.relowner)
    loop
        execute format('grant %s on studyhall.evidence, studyhall.space_changes to %s', grantee.privilege, grantee.role);
    end loop;
end $$;
