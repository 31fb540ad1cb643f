-- What both adapters share: the same rows through the Data API and through psycopg. Several-row rules are functions,
-- as the Data API has no transaction over several requests. Written for Postgres 15 to 18.

-- An epoch names its run by uid; a user's own rows have the number of their table's row.
alter table public.epoch_results add column if not exists run_uid uuid;
update public.epoch_results e set run_uid = r.uid
from public.training_runs r where r.id = e.training_run_id and e.run_uid is null;
do $$
begin
    alter table public.epoch_results
        add constraint epoch_results_run_uid foreign key (run_uid) references public.training_runs (uid) on delete cascade;
exception when duplicate_object then null;
end
$$;
create index if not exists epoch_results_run_uid on public.epoch_results (run_uid, epoch_number);

create or replace function public.epoch_results_find_run() returns trigger
language plpgsql set search_path = '' as $$
begin
    if new.run_uid is null then
        select r.uid into new.run_uid from public.training_runs r where r.id = new.training_run_id;
    elsif new.training_run_id is null then
        select r.id into new.training_run_id from public.training_runs r where r.uid = new.run_uid;
    end if;
    return new;
end
$$;
drop trigger if exists epoch_results_find_run on public.epoch_results;
create trigger epoch_results_find_run before insert or update on public.epoch_results
    for each row execute function public.epoch_results_find_run();

-- What a person says of an epoch or a run: the columns of a user's own tables, made where they are missing.
alter table public.training_runs
    add column if not exists quality_score double precision,
    add column if not exists overall_verdict text,
    add column if not exists production_ready boolean,
    add column if not exists caption_version text,
    add column if not exists parent_run_uid uuid references public.training_runs (uid) on delete set null,
    add column if not exists sources jsonb;
alter table public.epoch_results
    add column if not exists visual_quality_score double precision,
    add column if not exists style_match_score double precision,
    add column if not exists prompt_adherence_score double precision,
    add column if not exists is_photorealistic boolean,
    add column if not exists is_overtrained boolean,
    add column if not exists has_wrong_backgrounds boolean,
    add column if not exists verdict text,
    add column if not exists observations text;

create table if not exists public.human_ratings (
    uid uuid primary key,
    run_uid uuid not null references public.training_runs (uid) on delete cascade,
    epoch_number integer not null,
    visual double precision check (visual between 0 and 10),
    style double precision check (style between 0 and 10),
    prompt double precision check (prompt between 0 and 10),
    words text,
    created_at timestamptz not null
);
create index if not exists human_ratings_run on public.human_ratings (run_uid, epoch_number);

create table if not exists public.test_prompts (
    campaign text not null,
    position integer not null,
    name text not null,
    prompt text not null,
    expectation jsonb not null,
    primary key (campaign, position)
);
create table if not exists public.caption_versions (
    dataset text primary key,
    label text,
    num_images integer,
    audit jsonb,
    created_at timestamptz not null
);
create table if not exists public.experiment_queue (
    uid uuid primary key,
    campaign text not null,
    position integer not null,
    parameters jsonb not null,
    hypothesis_uid uuid references public.hypotheses (uid) on delete set null,
    reason text,
    state text not null,
    created_at timestamptz not null
);
create index if not exists experiment_queue_campaign on public.experiment_queue (campaign, state, position);
create index if not exists experiment_queue_hypothesis on public.experiment_queue (hypothesis_uid);
create table if not exists public.principles (
    uid uuid primary key,
    rule text not null,
    support integer not null,
    exceptions integer not null,
    scope jsonb not null,
    evidence text not null,
    state text not null,
    details jsonb,
    created_at timestamptz not null
);
create table if not exists public.artifacts (
    uid uuid primary key,
    run_uid uuid not null references public.training_runs (uid) on delete cascade,
    epoch_number integer,
    kind text not null,
    path text not null,
    storage text not null,
    bytes bigint,
    sha256 text,
    created_at timestamptz not null
);
create index if not exists artifacts_run on public.artifacts (run_uid, epoch_number);
create index if not exists training_runs_parent on public.training_runs (parent_run_uid);

-- A campaign counts as finished from the first save with a reason to end.
create or replace function public.save_campaign(name text, settings jsonb, status text, end_reason text)
returns void language sql set search_path = '' as $$
    insert into public.campaigns as kept (name, settings, status, end_reason, finished_at)
    values ($1, $2, $3, $4, case when $4 is not null then now() end)
    on conflict (name) do update set
        settings = excluded.settings, status = excluded.status, end_reason = excluded.end_reason,
        finished_at = case
            when excluded.end_reason is not null then coalesce(kept.finished_at, excluded.finished_at)
        end
$$;

-- A reader sees the old proposals or the new ones, never none.
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
        gain = excluded.gain, state = excluded.state, created_at = excluded.created_at
$$;

-- Runs whose parameters meet all conditions [{parameter, operator, value}]. jsonb orders values within a type only, so
-- values of another type never match. `equals` are those that must be equal, which the index on all_parameters answers.
create or replace function public.find_training_runs(conditions jsonb, equals jsonb)
returns setof public.training_runs language sql stable set search_path = '' as $$
    select r.* from public.training_runs r
    where r.all_parameters @> equals and r.campaign is not null and not exists (
        select from jsonb_array_elements(conditions) c
        where not coalesce(
            jsonb_typeof(r.all_parameters->(c->>'parameter')) = jsonb_typeof(c->'value')
            and case c->>'operator'
                when '==' then r.all_parameters->(c->>'parameter') = c->'value'
                when '!=' then r.all_parameters->(c->>'parameter') <> c->'value'
                when '<' then r.all_parameters->(c->>'parameter') < c->'value'
                when '<=' then r.all_parameters->(c->>'parameter') <= c->'value'
                when '>' then r.all_parameters->(c->>'parameter') > c->'value'
                when '>=' then r.all_parameters->(c->>'parameter') >= c->'value'
            end, false)
    )
$$;

-- Parameters in which two runs differ, nested ones by their path.
create or replace function public.compare_training_runs(a text, b text)
returns table (parameter text, first jsonb, second jsonb) language sql stable set search_path = '' as $$
    with recursive leaves (run_name, path, value) as (
        select r.run_name, p.key, p.value from public.training_runs r, jsonb_each(r.all_parameters) p
        where r.run_name in (a, b)
        union all
        select l.run_name, l.path || '.' || p.key, p.value
        from leaves l, jsonb_each(case when jsonb_typeof(l.value) = 'object' then l.value else '{}'::jsonb end) p
    ), ends as (select * from leaves where jsonb_typeof(value) <> 'object')
    select coalesce(x.path, y.path), x.value, y.value
    from (select path, value from ends where run_name = a) x
    full join (select path, value from ends where run_name = b) y on x.path = y.path
    where x.value is distinct from y.value
    order by 1
$$;

create or replace function public.best_training_run(of_campaign text default null)
returns setof public.training_runs language sql stable set search_path = '' as $$
    select * from public.training_runs
    where quality is not null and (of_campaign is null or campaign = of_campaign)
    order by quality desc, started_at limit 1
$$;

create or replace view public.v_epochs with (security_invoker = true) as
select e.uid, e.run_uid, r.campaign, r.run_name, e.epoch_number, e.quality, e.train_loss, e.seconds,
    e.evaluation_seconds, e.checkpoint, e.sample_sheet, e.quantitative_metrics - 'pictures' as quantitative_metrics,
    e.diagnosed_issues, e.recommendations, e.created_at
from public.epoch_results e join public.training_runs r on r.uid = e.run_uid
where e.quantitative_metrics is not null;

create or replace view public.v_epoch_metrics_progression with (security_invoker = true) as
select r.campaign, r.run_name, e.run_uid, e.epoch_number, e.quality, e.train_loss,
    (e.quantitative_metrics->'mean'->>'colour')::float as colour,
    (e.quantitative_metrics->'mean'->>'background_accuracy')::float as background_accuracy,
    (e.quantitative_metrics->'mean'->>'hair_accuracy')::float as hair_accuracy,
    (e.quantitative_metrics->'mean'->>'crown_accuracy')::float as crown_accuracy,
    (e.quantitative_metrics->'mean'->>'style')::float as style,
    (e.quantitative_metrics->'mean'->>'pixel_art_purity')::float as pixel_art_purity,
    (e.quantitative_metrics->'mean'->>'palette_size')::float as palette_size,
    (e.quantitative_metrics->>'photorealistic_share')::float as photorealistic_share,
    e.quality - lag(e.quality) over (partition by e.run_uid order by e.epoch_number) as gain,
    e.visual_quality_score, e.style_match_score, e.prompt_adherence_score
from public.epoch_results e join public.training_runs r on r.uid = e.run_uid;

create or replace view public.v_training_comparison with (security_invoker = true) as
select r.campaign, r.number, r.run_name, r.base_model, r.dataset, r.outcome, r.failure, r.quality, r.best_epoch,
    r.quality_score, r.production_ready,
    (r.all_parameters->>'network_dim')::float as network_dim,
    (r.all_parameters->>'network_alpha')::float as network_alpha,
    (r.all_parameters->>'conv_dim')::float as conv_dim,
    coalesce(r.all_parameters->>'unet_lr', r.all_parameters->>'learning_rate')::float as learning_rate,
    r.all_parameters->>'optimizer_type' as optimizer_type, r.all_parameters->>'lr_scheduler' as lr_scheduler,
    (r.all_parameters->>'keep_tokens')::float as keep_tokens, r.all_parameters->>'shuffle_caption' as shuffle_caption,
    coalesce(r.caption_version, r.all_parameters->>'caption_version') as caption_version,
    r.total_training_time, r.peak_memory_mb, r.all_parameters, r.started_at, r.finished_at
from public.training_runs r;

-- Parameter by parameter, one row a run: what a correlation is computed from.
create or replace view public.v_parameter_correlation with (security_invoker = true) as
select r.campaign, r.run_name, p.key as parameter, p.value,
    case when jsonb_typeof(p.value) = 'number' then (p.value #>> '{}')::float end as number,
    r.quality, r.outcome, r.best_epoch, r.total_training_time
from public.training_runs r, jsonb_each(r.all_parameters) p
where r.outcome is not null;

create or replace view public.v_prompt_results with (security_invoker = true) as
select r.campaign, r.run_name, e.run_uid, e.epoch_number, p.ordinality::integer as picture, t.name as prompt_name,
    t.prompt, (p.value->>'overall')::float as overall, (p.value->>'colour')::float as colour,
    (p.value->>'style')::float as style, p.value as metrics
from public.epoch_results e
join public.training_runs r on r.uid = e.run_uid
cross join lateral jsonb_array_elements(e.quantitative_metrics->'pictures') with ordinality p
left join public.test_prompts t on t.campaign = r.campaign and t.position = p.ordinality - 1;

create or replace view public.v_gate_ledger with (security_invoker = true) as
select campaign, number, verdict->>'decision' as decision, verdict->>'rule' as rule, verdict->>'reason' as reason,
    (verdict->>'p_fail')::float as p_fail, (predicted->>'quality')::float as expected, null::float as quality,
    null as outcome, created_at
from public.refused_proposals
union all
select campaign, number, verdict->>'decision', verdict->>'rule', verdict->>'reason', (verdict->>'p_fail')::float,
    (predicted->>'quality')::float, quality, outcome, started_at
from public.training_runs where verdict is not null;

-- Good enough to be shipped: marked so by a person, or near the campaign's best without a named problem.
create or replace view public.v_production_ready_epochs with (security_invoker = true) as
select r.campaign, r.run_name, e.run_uid, e.epoch_number, e.quality, e.checkpoint, r.production_ready
from public.epoch_results e join public.training_runs r on r.uid = e.run_uid
where e.quality is not null and e.checkpoint is not null and coalesce(r.production_ready, true)
    and (r.production_ready or (
        e.quality >= 80 and not coalesce(e.is_overtrained, false) and not coalesce(e.is_photorealistic, false)
        and jsonb_array_length(coalesce(e.diagnosed_issues, '[]'::jsonb)) = 0
    ));

do $$
declare
    t text;
begin
    foreach t in array array[
        'human_ratings', 'test_prompts', 'caption_versions', 'experiment_queue', 'principles', 'artifacts'
    ] loop
        execute format('alter table public.%I enable row level security', t);
        execute format('grant select, insert, update, delete on public.%I to service_role', t);
    end loop;
    foreach t in array array[
        'v_epochs', 'v_epoch_metrics_progression', 'v_training_comparison', 'v_parameter_correlation',
        'v_prompt_results', 'v_gate_ledger', 'v_production_ready_epochs'
    ] loop
        execute format('grant select on public.%I to service_role', t);
    end loop;
    foreach t in array array[
        'save_campaign(text, jsonb, text, text)', 'replace_hypotheses(text[], jsonb)',
        'find_training_runs(jsonb, jsonb)', 'compare_training_runs(text, text)', 'best_training_run(text)'
    ] loop
        execute format('revoke execute on function public.%s from public, anon, authenticated', t);
        execute format('grant execute on function public.%s to service_role', t);
    end loop;
    grant usage, select on all sequences in schema public to service_role;
end
$$;

notify pgrst, 'reload schema';
