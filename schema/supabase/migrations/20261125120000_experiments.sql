-- The queue is the hypotheses in state 'queued', in order of their priority: a table of its own was a second truth.
drop table if exists public.experiment_queue;

-- What an experiment costs, and what should be done before it.
alter table public.hypotheses
    add column if not exists gpu_hours double precision,
    add column if not exists blockers text[];
create or replace function public.replace_hypotheses(campaigns text[], proposals jsonb)
returns void language sql set search_path = '' as $$
    with wanted as (select * from jsonb_populate_recordset(null::public.hypotheses, proposals)),
    gone as (
        delete from public.hypotheses h where h.campaign = any (campaigns) and h.state = 'proposed'
            and h.uid not in (select uid from wanted)
    )
    insert into public.hypotheses select * from wanted
    on conflict (uid) do update set
        campaign = excluded.campaign, priority = excluded.priority, change = excluded.change,
        parameters = excluded.parameters, rationale = excluded.rationale, expected = excluded.expected,
        gain = excluded.gain, state = excluded.state, created_at = excluded.created_at,
        gpu_hours = excluded.gpu_hours, blockers = excluded.blockers
$$;

-- A person's choice between two epochs' pictures of one prompt and seed.
create table if not exists public.picture_votes (
    uid uuid primary key,
    run_uid uuid not null references public.training_runs (uid) on delete cascade,
    epoch_number integer not null,
    other_run_uid uuid not null references public.training_runs (uid) on delete cascade,
    other_epoch_number integer not null,
    picture text not null,
    choice text not null check (choice in ('first', 'second', 'tie')),
    created_at timestamptz not null
);
create index if not exists picture_votes_run on public.picture_votes (run_uid, epoch_number);
create index if not exists picture_votes_other on public.picture_votes (other_run_uid);

-- What each parameter did to the outcomes, as known when the run had ended. Apart from the run's own row of `save_run`,
-- so that a history of a thousand runs does not carry it a thousand times.
create or replace function public.save_parameter_analysis(of_run uuid, effects jsonb)
returns void language plpgsql set search_path = '' as $$
begin
    update public.training_runs set parameter_analysis = effects where uid = of_run;
    if not found then
        raise exception 'no run %', of_run using errcode = 'foreign_key_violation';
    end if;
end
$$;

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
                ) as key, j - 'id' - 'training_run_id' as data
                from public.%1$I t, to_jsonb(t) j where $1 is null or %2$s
            ) x order by x.key collate "C"
        $query$, of_table, condition
    ) using of_campaign;
end
$$;

-- Rows as `export_rows` gave them; those with the same identity are replaced.
create or replace function public.import_rows(of_table text, entries jsonb)
returns void language plpgsql set search_path = '' as $$
declare
    identity text := case of_table
        when 'campaigns' then 'name' when 'analyses' then 'campaign, created_at'
        when 'test_prompts' then 'campaign, position' when 'caption_versions' then 'dataset' else 'uid' end;
    columns text[];
    missing text;
begin
    if of_table not in (
        'campaigns', 'training_runs', 'epoch_results', 'refused_proposals', 'hypotheses', 'analyses', 'human_ratings',
        'picture_votes', 'test_prompts', 'caption_versions', 'principles', 'artifacts'
    ) then
        raise exception 'no table of pixelloop: %', of_table;
    end if;
    select array_agg(distinct k order by k) into columns
    from jsonb_array_elements(entries) e, jsonb_object_keys(e) k;
    select string_agg(c, ', ') into missing from unnest(columns) c where not exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = format('public.%I', of_table)::regclass and a.attname = c and a.attnum > 0 and not a.attisdropped
    );
    if missing is not null then
        raise exception 'table % lacks columns that the file has: %; add them first', of_table, missing;
    end if;
    if columns is not null then
        execute format(
            'insert into public.%1$I (%2$s) select %2$s from jsonb_populate_recordset(null::public.%1$I, $1)'
            ' on conflict (%3$s) do update set %4$s',
            of_table, (select string_agg(format('%I', c), ', ') from unnest(columns) c), identity,
            (select string_agg(format('%1$I = excluded.%1$I', c), ', ') from unnest(columns) c)
        ) using entries;
    end if;
end
$$;

alter table public.picture_votes enable row level security;
grant select, insert, update, delete on public.picture_votes to service_role;
drop policy if exists pixelloop_secret_key on public.picture_votes;
create policy pixelloop_secret_key on public.picture_votes for all to service_role using (true) with check (true);
do $$
declare
    f text;
begin
    foreach f in array array[
        'export_rows(text, text)', 'import_rows(text, jsonb)', 'replace_hypotheses(text[], jsonb)',
        'save_parameter_analysis(uuid, jsonb)'
    ] loop
        execute format('revoke execute on function public.%s from public, anon, authenticated', f);
        execute format('grant execute on function public.%s to service_role', f);
    end loop;
end
$$;

notify pgrst, 'reload schema';
