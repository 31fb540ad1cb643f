-- A user's own tables may demand columns that pixelloop's rows do not have: nothing is dropped but the demand.
do $$
declare
    c record;
begin
    for c in
        select a.attrelid::regclass as relation, a.attname
        from pg_attribute a
        where a.attrelid in ('public.training_runs'::regclass, 'public.epoch_results'::regclass)
            and a.attnum > 0 and a.attnotnull and not a.attisdropped and a.attname not in ('uid', 'epochs_done')
            and not exists (
                select from pg_index i where i.indrelid = a.attrelid and i.indisprimary and a.attnum = any (i.indkey)
            )
    loop
        execute format('alter table %s alter column %I drop not null', c.relation, c.attname);
    end loop;
end
$$;

-- One result an epoch, of ours: a user's old rows may repeat themselves.
create unique index if not exists epoch_results_run_epoch on public.epoch_results (training_run_id, epoch_number)
    where quantitative_metrics is not null;

alter table public.campaigns add column if not exists finished_at timestamptz;

notify pgrst, 'reload schema';
