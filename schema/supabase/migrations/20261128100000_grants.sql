-- Supabase grants every new table, sequence and function of the public schema to anon and authenticated, and row level
-- security stops no TRUNCATE. Each role keeps what it uses: service_role rows, views and functions, the others nothing.
-- Other tables of the project are left alone; so are default privileges, as they would hold for those tables too.
do $$
declare
    c record;
    r text;
    kept text;
begin
    for c in
        select k.oid, k.oid::regclass as relation, k.relkind
        from pg_catalog.pg_class k join pg_catalog.pg_namespace n on n.oid = k.relnamespace
        where n.nspname = 'public' and k.relname in (
            'training_runs', 'epoch_results', 'campaigns', 'refused_proposals', 'hypotheses', 'analyses',
            'human_ratings', 'picture_votes', 'test_prompts', 'caption_versions', 'principles', 'artifacts',
            'experiment_queue', 'v_epochs', 'v_training_comparison', 'v_epoch_metrics_progression',
            'v_production_ready_epochs', 'v_prompt_results', 'v_parameter_correlation', 'v_gate_ledger'
        )
    loop
        foreach r in array array['anon', 'authenticated'] loop
            kept := null;
            -- A user's own table may be open to a page of theirs, by a policy: that stays.
            if exists (
                select from pg_catalog.pg_policy p where p.polrelid = c.oid
                    and (p.polroles = '{0}' or (select a.oid from pg_catalog.pg_roles a where a.rolname = r) = any (p.polroles))
            ) then
                select string_agg(p, ', ') into kept
                from unnest(array['select', 'insert', 'update', 'delete']) p
                where has_table_privilege(r, c.oid, p);
            end if;
            execute format('revoke all on %s from %I', c.relation, r);
            if kept is not null then
                execute format('grant %s on %s to %I', kept, c.relation, r);
            end if;
        end loop;
        execute format('revoke all on %s from public, service_role', c.relation);
        execute format(
            'grant %s on %s to service_role',
            case c.relkind when 'v' then 'select' else 'select, insert, update, delete' end, c.relation
        );
    end loop;
    for c in
        select distinct s.oid::regclass as relation
        from pg_catalog.pg_class s join pg_catalog.pg_depend d on d.objid = s.oid and d.deptype in ('a', 'i')
        where s.relkind = 'S'
            and d.refobjid in ('public.training_runs'::regclass, 'public.epoch_results'::regclass)
    loop
        execute format('revoke all on sequence %s from public, anon, authenticated, service_role', c.relation);
        execute format('grant usage, select on sequence %s to service_role', c.relation);
    end loop;
    for c in
        select p.oid::regprocedure as called, p.prorettype = 'trigger'::regtype as is_trigger
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'public' and p.proname in (
            'epoch_results_find_run', 'training_runs_mark_overtrained', 'mark_changed', 'save_campaign',
            'replace_hypotheses', 'save_rating', 'save_parameter_analysis', 'find_training_runs',
            'compare_training_runs', 'best_training_run', 'export_rows', 'import_rows', 'runs_changed_since',
            'epochs_changed_since', 'history_size'
        )
    loop
        execute format('revoke all on function %s from public, anon, authenticated, service_role', c.called);
        if not c.is_trigger then -- a trigger runs its function without anyone's leave to call it
            execute format('grant execute on function %s to service_role', c.called);
        end if;
    end loop;
end
$$;

notify pgrst, 'reload schema';
