-- A heartbeat waits for no disk. What a crash of the database takes of it is time: a lease that ends sooner than its holder believes,
-- who is kept from writing by the fence as soon as another one takes the run over. Fences are another matter: a claim does wait, or
-- one number could be given out twice.
set local role bulkhead_queue;

create or replace function queue.heartbeat_runs_v1(claimant text, tasks uuid[], fences bigint[], lease_s double precision)
returns table (task_id uuid, fence bigint)
language sql volatile security definer
set search_path = ''
as $$
    select set_config('synchronous_commit', 'off', true);
    update queue.run r
    set leased_until = clock_timestamp() + make_interval(secs => lease_s)
    from unnest(tasks, fences) as held (task_id, fence)
    where r.task_id = held.task_id and r.fence = held.fence and r.worker = claimant
    returning r.task_id, r.fence;
$$;

reset role;
