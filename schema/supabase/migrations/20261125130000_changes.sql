-- What has changed since a reader last looked, so that a decision need not read a life's work anew each time: rows say
-- which transaction wrote them, as transactions, unlike times, can be asked which of them were still open at a look.
alter table public.training_runs add column if not exists changed_in xid8 not null default pg_current_xact_id();
alter table public.epoch_results add column if not exists changed_in xid8 not null default pg_current_xact_id();
create index if not exists training_runs_changed on public.training_runs (changed_in);
create index if not exists epoch_results_changed on public.epoch_results (changed_in);

create or replace function public.mark_changed() returns trigger
language plpgsql set search_path = '' as $$
begin
    new.changed_in := pg_current_xact_id();
    return new;
end
$$;
drop trigger if exists training_runs_changed on public.training_runs;
create trigger training_runs_changed before insert or update on public.training_runs
    for each row execute function public.mark_changed();
drop trigger if exists epoch_results_changed on public.epoch_results;
create trigger epoch_results_changed before insert or update on public.epoch_results
    for each row execute function public.mark_changed();

-- `since` is a `horizon` of history_size(), or null for all rows. Rows that a user's own tables had before are not ours.
create or replace function public.runs_changed_since(since text)
returns setof public.training_runs language sql stable set search_path = '' as $$
    select r.* from public.training_runs r
    where r.all_parameters is not null and r.campaign is not null and r.changed_in >= coalesce(since, '0')::xid8
    order by r.uid
$$;
create or replace function public.epochs_changed_since(since text)
returns setof public.v_epochs language sql stable set search_path = '' as $$
    select v.* from public.epoch_results e join public.v_epochs v on v.uid = e.uid
    where e.changed_in >= coalesce(since, '0')::xid8
    order by v.uid
$$;

-- How many rows there are, by which a reader sees that some were deleted, and the oldest transaction that is still open:
-- whoever reads after this and then all from it on has missed none.
create or replace function public.history_size()
returns table (runs bigint, epochs bigint, horizon text) language sql stable set search_path = '' as $$
    select (select count(*) from public.training_runs where all_parameters is not null and campaign is not null),
        (select count(*) from public.epoch_results where quantitative_metrics is not null and run_uid is not null),
        pg_snapshot_xmin(pg_current_snapshot())::text
$$;

-- The transaction of a change is of this database alone: it stays behind, as the numbers of rows do.
create or replace function public.export_rows(of_table text, of_campaign text default null)
returns table (key text, data jsonb) language plpgsql stable set search_path = '' as $$
declare
    condition text;
begin
    condition := case
        when of_table in ('caption_versions', 'principles') then 'true' -- of no campaign alone
        when of_table = 'campaigns' then 't.name = $1'
        when of_table in ('training_runs', 'refused_proposals', 'hypotheses', 'analyses', 'test_prompts') then 't.campaign = $1'
        when of_table in ('epoch_results', 'human_ratings', 'picture_votes', 'artifacts')
            then 't.run_uid in (select r.uid from public.training_runs r where r.campaign = $1)'
    end;
    if condition is null then
        raise exception 'no table of pixelloop: %', of_table;
    end if;
    return query execute format(
        $query$
            select x.key, x.data from (
                select coalesce(
                    j->>'uid', jsonb_build_array(j->'campaign', j->'name', j->'position', j->'dataset', j->'created_at')::text
                ) as key, j - 'id' - 'training_run_id' - 'changed_in' as data
                from public.%1$I t, to_jsonb(t) j where $1 is null or %2$s
            ) x order by x.key collate "C"
        $query$, of_table, condition
    ) using of_campaign;
end
$$;

-- What a campaign runs next, for those who look for it by this name.
create or replace view public.experiment_queue with (security_invoker = true) as
select h.uid, h.campaign, row_number() over (partition by h.campaign order by h.priority, h.uid)::integer as position,
    h.change, h.parameters, h.rationale, h.gpu_hours, h.blockers, h.created_at
from public.hypotheses h where h.state = 'queued';
grant select on public.experiment_queue to service_role;

do $$
declare
    f text;
begin
    foreach f in array array[
        'runs_changed_since(text)', 'epochs_changed_since(text)', 'history_size()', 'mark_changed()'
    ] loop
        execute format('revoke execute on function public.%s from public, anon, authenticated', f);
        execute format('grant execute on function public.%s to service_role', f);
    end loop;
end
$$;

notify pgrst, 'reload schema';
