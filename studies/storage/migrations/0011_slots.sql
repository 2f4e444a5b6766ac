-- How many trials a worker can train at once.

alter table studyhall.workers add slots integer not null default 1;
