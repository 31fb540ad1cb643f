-- All rows of a table as JSON and back, for one portable file. What only this database numbers (id) stays behind; rows
-- find each other by uid. Callable through the Data API as through psycopg.
create or replace function public.export_rows(of_table text, of_campaign text default null)
returns table (key text, data jsonb) language plpgsql stable set search_path = '' as $$
declare
    condition text;
begin
    condition := case
        when of_table in ('caption_versions', 'principles') then 'true' -- of no campaign alone
        when of_table = 'campaigns' then 't.name = $1'
        when of_table in ('training_runs', 'refused_proposals', 'hypotheses', 'analyses', 'test_prompts',
            'experiment_queue') then 't.campaign = $1'
        when of_table in ('epoch_results', 'human_ratings', 'artifacts')
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
        'test_prompts', 'caption_versions', 'experiment_queue', 'principles', 'artifacts'
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

do $$
declare
    f text;
begin
    foreach f in array array['export_rows(text, text)', 'import_rows(text, jsonb)'] loop
        execute format('revoke execute on function public.%s from public, anon, authenticated', f);
        execute format('grant execute on function public.%s to service_role', f);
    end loop;
end
$$;

notify pgrst, 'reload schema';
