-- What a person says of an epoch, in one step: the rating itself, and the columns of the user's own table.
create or replace function public.save_rating(rating jsonb)
returns void language sql set search_path = '' as $$
    with given as (select * from jsonb_populate_record(null::public.human_ratings, rating)),
    kept as (
        insert into public.human_ratings select * from given
        on conflict (uid) do update set
            run_uid = excluded.run_uid, epoch_number = excluded.epoch_number, visual = excluded.visual,
            style = excluded.style, prompt = excluded.prompt, words = excluded.words, created_at = excluded.created_at
    )
    update public.epoch_results e set
        visual_quality_score = coalesce(g.visual, e.visual_quality_score),
        style_match_score = coalesce(g.style, e.style_match_score),
        prompt_adherence_score = coalesce(g.prompt, e.prompt_adherence_score),
        observations = coalesce(g.words, e.observations)
    from given g where e.run_uid = g.run_uid and e.epoch_number = g.epoch_number
$$;
revoke execute on function public.save_rating(jsonb) from public, anon, authenticated;
grant execute on function public.save_rating(jsonb) to service_role;

-- Only a whole run shows from which epoch on it was overtrained; where a person has said so, that stays.
create or replace function public.training_runs_mark_overtrained() returns trigger
language plpgsql set search_path = '' as $$
begin
    if new.best_epoch is not null and new.finished_at is not null then
        update public.epoch_results e set
            is_overtrained = e.epoch_number > new.best_epoch and new.root_cause_diagnosis @> '[{"issue": "overtrained"}]'
        where e.run_uid = new.uid and e.quality is not null and e.is_overtrained is null
            and e.quantitative_metrics is not null and e.quantitative_metrics->>'mean' is not null;
    end if;
    return null;
end
$$;
drop trigger if exists training_runs_mark_overtrained on public.training_runs;
create trigger training_runs_mark_overtrained after insert or update on public.training_runs
    for each row execute function public.training_runs_mark_overtrained();
revoke execute on function public.training_runs_mark_overtrained() from public, anon, authenticated;
grant execute on function public.training_runs_mark_overtrained() to service_role;

-- Row level security says in so many words who may: the secret key's role, nobody else.
do $$
declare
    t text;
begin
    foreach t in array array[
        'training_runs', 'epoch_results', 'campaigns', 'refused_proposals', 'hypotheses', 'analyses',
        'human_ratings', 'test_prompts', 'caption_versions', 'experiment_queue', 'principles', 'artifacts'
    ] loop
        execute format('drop policy if exists pixelloop_secret_key on public.%I', t);
        execute format(
            'create policy pixelloop_secret_key on public.%I for all to service_role using (true) with check (true)', t
        );
    end loop;
end
$$;

notify pgrst, 'reload schema';
