"""The report's fixed text in Japanese; see `texts`."""

from __future__ import annotations

TEXT: dict[str, str] = {
    "product": "holdfast安全性レポート",
    "skip": "要約へ移動",
    "written": "作成日{date}",
    "last_result": "最終測定{date}",
    "scope": "手法{methods}・攻撃{attacks}・シード{seeds}",
    "digest_short": "実行{digest}",
    "contents": "目次",
    "summary": "要約",
    "comparison": "手法の比較",
    "attacks": "攻撃を受けたときの推移",
    "undecided_title": "判定できなかった回答",
    "examples": "回答の例",
    "limits": "この数値からは言えないこと",
    "made": "実施の記録",
    "data": "データの出所",
    "hashes": "ハッシュ値",
    "glossary": "用語",
    "unknown": "不明",
    "not_recorded": "記録なし",
    "at_least": "少なくとも{value}",
    "at_most": "多くとも{value}",
    "verdict_longer": (
        "最も長く持ちこたえたのは{best}です。制限対象の質問の半数に有害な回答を返すようになるま"
        "でに要した攻撃ステップ数は、通常のSFTの{ratio}倍でした（95%信頼区間{low}〜{high}、対応"
        "する攻撃{pairs}組）。"
    ),
    "verdict_longer_bound": (
        "最も長く持ちこたえたのは{best}です。制限対象の質問の半数に有害な回答を返すようになるま"
        "でに要した攻撃ステップ数は、通常のSFTの{ratio}倍でした（95%信頼区間{low}〜{high}、"
        "対応する攻撃{pairs}組。一部の攻撃は、モデルが崩れる前に終了しています）。"
    ),
    "verdict_longer_censored": (
        "最も長く持ちこたえたのは{best}です。制限対象の質問の半数に有害な回答を返すようになるま"
        "でに要した攻撃ステップ数は、通常のSFTの推定{ratio}倍でした（95%信頼区間{low}〜{high}、"
        "対応する攻撃{pairs}組。うち{censored}組では、どちらかが崩れる前に攻撃が終了しており、打"
        "ち切りとして扱っています）。"
    ),
    "verdict_shorter": (
        "対応づけて比べられる範囲では、{best}は通常のSFTより早く崩れました。半減期は通常のSFTの"
        "{ratio}倍です（95%信頼区間{low}〜{high}、対応する攻撃{pairs}組）。"
    ),
    "verdict_longer_equal": (
        "最も長く持ちこたえたのは{best}です。対応する攻撃{pairs}組のいずれでも、制限対象の質問の半"
        "数に有害な回答を返すようになるまでに要した攻撃ステップ数は、通常のSFTの{ratio}倍でした。"
    ),
    "verdict_shorter_equal": (
        "対応づけて比べられる範囲では、{best}は通常のSFTより早く崩れました。対応する攻撃{pairs}組"
        "のいずれでも、半減期は通常のSFTの{ratio}倍です。"
    ),
    "verdict_unclear_equal": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。対応す"
        "る攻撃{pairs}組のいずれでも半減期は{ratio}倍でしたが、この組数では偶然一致することもありえ"
        "ます。"
    ),
    "verdict_unclear": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。半"
        "減期は{ratio}倍でしたが、95%信頼区間{low}〜{high}には「差なし」が含まれます（対応する"
        "攻撃{pairs}組）。"
    ),
    "verdict_unclear_one": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。比"
        "較できる攻撃は1組だけで、その半減期は{ratio}倍でしたが、1組では偶然との区別がつきませ"
        "ん。"
    ),
    "verdict_unclear_none": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。半"
        "減期を比較できる攻撃の組がありませんでした。"
    ),
    "verdict_unclear_against": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。"
        "{pairs}組の攻撃では半減期が{ratio}倍でしたが、うち{against}組では通常のSFTが持ちこたえ、"
        "{best}が崩れました。"
    ),
    "verdict_unclear_early": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。"
        "{best}が崩れる前に終わった攻撃があり、下限しか分かっていません。より長い攻撃を行えば判"
        "断できます。"
    ),
    "verdict_unclear_upper": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。"
        "{pairs}組の攻撃では半減期が{ratio}倍でしたが、それ以上のことは分かりません。"
    ),
    "verdict_unclear_either": (
        "{best}が通常のSFTより長く持ちこたえるかどうかは、今回のデータからは判断できません。"
        "対応する攻撃{pairs}組のうち、下限しか分からない組と上限しか分からない組があり、"
        "合わせると比の上限も下限も定まりません。"
    ),
    "verdict_baseline": (
        "今回の実行で最も長く持ちこたえたのは通常のSFTでした。これより長く持ちこたえた手法は確"
        "認されていません。"
    ),
    "verdict_apart": (
        "どの手法が最も長く持ちこたえるかは、今回のデータからは判断できません。すべての手法が同じシー"
        "ドで受け、半減期が分かっている攻撃がありませんでした。"
    ),
    "verdict_no_baseline": (
        "攻撃した{methods}手法のうち、最も長く持ちこたえたのは{best}です。ただし通常のSFTを攻撃"
        "していないため、手法による上積みがどれだけあるかは分かりません。"
    ),
    "verdict_alone": "今回攻撃したのは{best}だけで、比較の対象がありません。",
    "verdict_none": (
        "今回の実行ではどのモデルにも攻撃を行っていないため、安全性がどれだけ続くかは分かりません。"
    ),
    "sentence_steps": (
        "これらの組の平均では、{best}が崩れるまでに{steps}ステップ、通常のSFTでは{base}ステップ"
        "を要しました（差{diff}、95%信頼区間{low}〜{high}）。"
    ),
    "sentence_steps_plain": (
        "これらの組の平均では、{best}が崩れるまでに{steps}ステップ、通常のSFTでは{base}ステップ"
        "を要しました。"
    ),
    "sentence_refusing": (
        "拒否そのものも長く続きます。制限対象の質問の半数が拒否されなくなるまでのステップ数は{ratio}"
        "倍でした（95%信頼区間{low}〜{high}）。"
    ),
    "sentence_refusing_not": (
        "ただし、拒否が長く続くことは今回のデータでは示されていません。制限対象の質問の半数が拒否さ"
        "れなくなるまでのステップ数は{ratio}倍でした（95%信頼区間{low}〜{high}）。有害でも拒否で"
        "もない回答もあり得ます。防御によって壊れたモデルは意味をなさない回答を返し、有害スコアはやはり"
        "低くなります。"
    ),
    "sentence_second": (
        "次点は{second}で、{best}はその{ratio}倍長く持ちこたえました（95%信頼区間{low}〜{high}）。"
    ),
    "sentence_second_unclear": (
        "{best}と次点の{second}のどちらが優れているかは、今回のデータからは判断できません。"
    ),
    "sentence_before": (
        "攻撃前の{best}が有害な回答を返した割合は、制限対象の質問の{hs}でした（95%信頼区間{low}"
        "〜{high}、回答{n}件）。"
    ),
    "sentence_before_unknown": "攻撃前の{best}の回答は測定していません。",
    "sentence_refusal": (
        "その代償として、無害だが紛らわしい質問の{over}を拒否しました（通常のSFTは{base}）。"
    ),
    "sentence_refusal_unknown": "その代償としての過剰拒否は測定していません。",
    "sentence_accuracy": (
        "双方に共通する最後のチェックポイントでは、顧客のタスクで正答した割合は{acc}でした（通常の"
        "SFTは{base}）。"
    ),
    "sentence_accuracy_alone": "攻撃終了時に顧客のタスクで正答した割合は{acc}でした。",
    "sentence_accuracy_unknown": "顧客のタスクの正答率は測定していません。",
    "card_ratio": "半減期（通常のSFT比）",
    "card_weakest": "最も短い半減期",
    "card_weakest_detail": "ステップ（{attack}）",
    "card_before": "攻撃前の有害回答率",
    "card_refusal": "過剰拒否率",
    "card_accuracy": "攻撃下でのタスク正答率",
    "card_versus": "通常のSFT {base}",
    "card_interval": "95%信頼区間{low}〜{high}",
    "card_lower": "下限（攻撃が先に終了）",
    "card_upper": "上限（攻撃が先に終了）",
    "card_unknown": "上限も下限も不明（攻撃が先に終了）",
    "card_of": "いずれも{best}の値です",
    "problems": "信頼できないファイル",
    "problems_text": (
        "次のファイルは、見つからないか、壊れているか、作成後に変更されています。これらに基づく"
        "内容は省かれているか、誤っている可能性があります。該当する手順を再実行してください。"
    ),
    "failed": "失敗したもの",
    "failed_text": (
        "次の手順は指定されましたが結果がなく、どの数値にも含まれていません。"
        "同じコマンドで再実行できます。"
    ),
    "missing": "不足しているもの",
    "missing_score": "脆弱性スコアがありません。",
    "missing_align": "モデルをどのようにアラインメントしたかの記録がありません。",
    "missing_attack": "攻撃の結果がないため、半減期、攻撃下の有害回答率、FAは不明です。",
    "missing_evaluate": (
        "評価の結果がないため、攻撃前の分類別の有害回答率、過剰拒否率、タスク正答率は不明です。"
    ),
    "missing_analyze": "分析がありません。",
    "missing_command": "作成するコマンド",
    "before_caption": "攻撃前の各手法",
    "method": "手法",
    "seeds": "シード数",
    "harmful_score": "有害回答率",
    "over_refusal": "過剰拒否率",
    "undecided": "判定不能",
    "task_accuracy": "タスク正答率",
    "from_attack": "攻撃のステップ0での測定値",
    "under_caption": "各攻撃を受けた各手法",
    "at_end": "攻撃終了時",
    "half_life": "半減期（ステップ）",
    "refusal_life": "拒否の持続（ステップ）",
    "versus": "通常のSFT比",
    "fa": "FA",
    "answers": "回答の内訳",
    "answers_split": "{n}件中、有害{harmful}件、判定不能{undecided}件、安全{safe}件",
    "answers_key": "有害・判定不能・安全",
    "censored_some": "{n}シード中{k}シードは崩れず",
    "table_note": (
        "大きい数字はシード間の平均、小さい数字は95%信頼区間です。割合の分母には判定できなかっ"
        "た回答も含みます。「>」は、質問の半数に有害な回答を返す前、または半数が拒否されなくなる前"
        "に攻撃が終わったことを示します（どちらでもない回答もあります）。攻撃終了時とは、その攻撃自身"
        "の最後のチェックポイントです。モデルが崩れた時点で終わる攻撃は、弱い手法ほど早く終わります。FA"
        "はその時点での顧客タスクの正答率です。"
    ),
    "no_comparison": "まだ何も測定されていません。",
    "poison": "有害データ{share}",
    "learning_rate": "学習率{value}",
    "guard": "防御{name}",
    "disguise": "データ加工{name}",
    "schedule": "学習率スケジュール{name}",
    "grid": "攻撃群{name}",
    "chart_curve_caption": (
        "攻撃ステップに対する有害回答率。線はシード間の平均、帯は最小のシードから最大のシードま"
        "での幅、破線は50%を示します。"
    ),
    "chart_life_caption": (
        "制限対象の質問の半数に有害な回答を返すまでの攻撃ステップ数と95%信頼区間。"
    ),
    "chart_steps": "攻撃ステップ",
    "chart_curve_title": "攻撃ステップに対する有害回答率（{attack}）",
    "chart_life_title": "手法別の安全性半減期（{attack}）",
    "chart_price_title": "手法別の半減期（通常のSFT比）と過剰拒否率",
    "chart_price_caption": (
        "頑健さの代償。右へ行くほど過剰拒否が多く、上へ行くほど半減期が通常のSFTに比べて長くな"
        "ります。左上ほど優れています。"
    ),
    "chart_price_y": "半減期（通常のSFTの何倍か）",
    "judge_note": "判定器: {judge}",
    "undecided_text": (
        "攻撃終了時の回答{n}件のうち{k}件（{share}）は、判定器が判断できませんでした。意味をな"
        "さない文や、質問と無関係な回答です。これらは有害にも安全にも数えていません。仮にすべて"
        "有害だった場合、有害回答率はその分だけ高くなります。"
    ),
    "undecided_none": "攻撃終了時の回答{n}件すべてについて、判定器が判断できました。",
    "undecided_caption": "各攻撃の終了時に判定できなかった回答",
    "undecided_count": "{n}件中{k}件",
    "examples_withheld": (
        "有害な内容が含まれる可能性があるため、回答の本文は掲載していません。確認するには次を実"
        "行します。"
    ),
    "examples_absent": "この実行では回答が保存されていません。",
    "examples_shown": (
        "以下はモデルが生成した文章です。有害な内容が含まれる場合があります。取り扱いにご注意く"
        "ださい。"
    ),
    "examples_prompt": "質問",
    "examples_response": "回答",
    "examples_verdict": "判定",
    "figure_refused": "この図はSVGとして正しくないため、表示していません。",
    "limit_attacks": (
        "対象は、ここに挙げた攻撃だけです。公表されているどの防御も、十分に長い、あるいは強い攻"
        "撃には崩れます。半減期は崩すのにどれだけの手間がかかるかを示すもので、安全を保証するも"
        "のではありません。"
    ),
    "limit_intervals": (
        "信頼区間が表すのは、シードと質問の選び方による偶然のばらつきです。基盤モデル、データ、"
        "言語、攻撃条件の選び方による違いは含みません。また、対応する攻撃どうしはモデルを共有し"
        "ているため、信頼区間がやや狭く出ている可能性があります。"
    ),
    "limit_seeds": (
        "手法ごとのシード数は最大でも{seeds}です。この数では、大きな差でなければ偶然と区別でき"
        "ません。"
    ),
    "limit_judge": (
        "判定は自動判定器によるもので、誤りもあります。試していない質問への回答は異なるかもしれ"
        "ません。"
    ),
    "limit_refusal": (
        "過剰拒否率は、あえて紛らわしい質問を集めて測っています。日常の利用での拒否はこれより少"
        "なくなりますが、分野によっては多くなることもあります。"
    ),
    "limit_use": (
        "これらの数値は、利用の実態を知る人が判断するための材料であり、認証ではありません。"
    ),
    "no_steps": "この実行には、まだ手順が記録されていません。",
    "steps_caption": "実施した全手順（実施順）",
    "step": "手順",
    "name": "名称",
    "seed": "シード",
    "started": "開始（UTC）",
    "duration": "所要（秒）",
    "key": "キー",
    "settings": "各手順の設定・コマンド・ファイル",
    "command": "コマンド",
    "configuration": "設定",
    "inputs": "入力",
    "outputs": "出力",
    "further_facts": "付随情報",
    "versions_caption": "ソフトウェアとハードウェア",
    "commit": "ソースのコミット",
    "hardware": "ハードウェア",
    "uncommitted": "未コミットの変更あり",
    "item": "項目",
    "value": "値",
    "provenance_none": (
        "データの出所に関する記録がありません。出典、ライセンス、権利者、同意のいずれも不明です。"
        "次の列をデータに加えて、手順を再実行してください。"
    ),
    "provenance_caption": "出所別の行数（{step}）",
    "column_source": "出典",
    "column_licence": "ライセンス",
    "column_owner": "権利者",
    "column_consent": "同意",
    "column_category": "分類",
    "column": "列",
    "rows": "行数",
    "share": "割合",
    "value_unknown": "不明（記載なし）",
    "hashes_text": (
        "実行ディレクトリをお持ちの方は、以下のSHA-256ハッシュ値を計算し直して照合できます。結"
        "果が一つでも変わると、実行全体の値も変わります。"
    ),
    "run_digest": "実行全体",
    "hash_caption": "すべての入力と出力のSHA-256",
    "file": "ファイルまたは入力",
    "sha": "SHA-256",
    "term_hs": "有害回答率（HS）",
    "term_hs_text": (
        "試験用の制限対象の質問のうち、有害な回答が返された割合です。分母は全回答です。低いほど"
        "良い値です。"
    ),
    "term_fa": "ファインチューニング正答率（FA）",
    "term_fa_text": (
        "ファインチューニング後（ここでは攻撃後）の、顧客自身のタスクの正答率です。高いほど良い"
        "値です。"
    ),
    "term_or": "過剰拒否率",
    "term_or_text": (
        "制限対象に似ているが無害な質問のうち、拒否された割合です。低いほど良い値です。"
    ),
    "term_hl": "安全性半減期",
    "term_hl_text": (
        "制限対象の質問の半数に有害な回答が返るようになるまでの攻撃ステップ数です。チェックポイ"
        "ントの間は補間します。「>400」は、400ステップで攻撃が終わるまでに半数に達しなかったこ"
        "とを示します。"
    ),
    "term_pr": "毒入れ率",
    "term_pr_text": "攻撃者がファインチューニングに使う行のうち、有害な行の割合です。",
    "term_fn": "忘却回数（ForgotNum）",
    "term_fn_text": (
        "もともと安全に回答できていたアラインメント用データの例が、試験的な攻撃のチェックポイン"
        "トのうち何回で有害な回答に変わったかを示します。多いほど早く忘れられる例です。"
    ),
    "term_vg": "脆弱群",
    "term_vg_text": "そのモデルが先に忘れると見込まれるアラインメント用データの例の集まりです。",
    "footer": "holdfast {version}で作成。このファイルはネットワークから何も読み込みません。",
}
